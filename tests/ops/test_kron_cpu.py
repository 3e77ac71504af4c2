"""The CPU kernel of kron_matmul: against the dense product, its gradients, bits and types."""

import logging
import math

import pytest
import torch

from kron_plugin.ops import backends, dense, kron_matmul
from kron_plugin.ops.backends import Problem
from kron_plugin.ops.kron import cpu, dispatch
from kron_plugin.ops.kron.flat import flatten, shapes_of
from kron_plugin.ops.native import kernel

SHAPES = {
    "2x2s": [(2, 2)] * 7,
    "one number": [(1, 1)],
    "ones": [(1, 1), (2, 2), (1, 1)],
    "3 137": [(3, 3), (137, 137)],
    "16 32": [(16, 16), (32, 32)],
    "mixed": [(2, 2), (5, 5), (2, 2), (2, 2), (3, 3)],
    "square together": [(2, 4), (4, 2)],
    "tall": [(3, 1), (2, 5), (4, 3)],
    "wide": [(1, 3), (2, 2), (2, 2), (3, 4)],
    "a row": [(1, 40)],
}
TYPES = [torch.float32, torch.float64, torch.complex64, torch.complex128]
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-13}
types = pytest.mark.parametrize("dtype", TYPES)
shapes_by_name = pytest.mark.parametrize("name", SHAPES)


def test_the_backend_is_here():
    problem = Problem(torch.device("cpu"), torch.float32, False)
    assert dispatch.BACKENDS.available(problem) == ["cpu", "reference"]


def case(shapes, batch, dtype, requires_grad=True):
    """Vectors and factors; the entries of W are about as large as 1 / √∏Q_f."""
    factors = [
        (torch.randn(p, q, dtype=dtype) / math.sqrt(q)).requires_grad_(requires_grad)
        for p, q in shapes
    ]
    n = math.prod(q for _, q in shapes)
    return torch.randn(*batch, n, dtype=dtype).requires_grad_(requires_grad), factors


def worst_error(have, want):
    """Relative to 1 at least: the gradient of a 1x1 factor is a sum of hundreds that may cancel."""
    pairs = [(a.detach(), b.detach()) for a, b in zip(have, want, strict=True)]
    return max(float((a - b).abs().max() / (1 + b.abs().max())) for a, b in pairs)


def exact(x, factors, d_y):
    """y and all gradients by the dense product, in double precision."""
    given = [t.detach().to(torch.promote_types(t.dtype, torch.float64)) for t in (x, *factors, d_y)]
    *leaves, d_y = given
    x, *factors = (leaf.requires_grad_() for leaf in leaves)
    y = x @ dense(factors).T
    return y, *torch.autograd.grad(y, [x, *factors], d_y)


def ours(x, factors, d_y, backend="cpu"):
    y = kron_matmul(x, factors, backend=backend)
    return y, *torch.autograd.grad(y, [x, *factors], d_y)


def upstream(x, factors):
    return torch.randn(*x.shape[:-1], math.prod(w.shape[0] for w in factors), dtype=x.dtype)


@pytest.mark.parametrize("batch", [(1,), (15,), (2, 20)])
@shapes_by_name
@types
def test_equals_the_dense_product(name, batch, dtype):
    x, factors = case(SHAPES[name], batch, dtype)
    d_y = upstream(x, factors)
    have, want = ours(x, factors, d_y), exact(x, factors, d_y)
    assert [t.shape for t in have] == [t.shape for t in want]
    assert {t.dtype for t in have} == {dtype}
    assert worst_error(have, want) < TOLERANCE[x.real.dtype]


@pytest.mark.parametrize("solved_from", [0, 1 << 62])
@types
def test_both_ways_to_the_factors_gradient(dtype, solved_from, monkeypatch):
    monkeypatch.setattr(cpu, "SOLVED_FROM", solved_from)
    x, factors = case([(2, 2)] * 5 + [(3, 3)], (700,), dtype)
    factors = [torch.linalg.qr(w.detach())[0].contiguous().requires_grad_() for w in factors]
    d_y = upstream(x, factors)
    assert worst_error(ours(x, factors, d_y), exact(x, factors, d_y)) < TOLERANCE[x.real.dtype]


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("name", ["ones", "square together", "tall", "wide"])
@pytest.mark.parametrize("backend", ["auto", "cpu"])
def test_gradients_of_first_and_second_order(name, dtype, backend):
    x, factors = case(SHAPES[name], (2,), dtype)

    def product(x, *factors):
        return kron_matmul(x, factors, backend=backend)

    torch.autograd.gradcheck(product, (x, *factors))
    torch.autograd.gradgradcheck(product, (x, *factors))


@types
def test_only_gradients_that_are_asked_for_are_computed(dtype, monkeypatch):
    x, factors = case(SHAPES["mixed"], (3,), dtype)
    d_y = upstream(x, factors)
    want = exact(x, factors, d_y)
    calls = []
    plain = kernel.run
    monkeypatch.setattr(
        kernel,
        "run",
        lambda *given, **fields: (calls.append((given[1], fields)), plain(*given, **fields)),
    )
    y = kron_matmul(x, [w.detach() for w in factors], backend="cpu")
    (d_x,) = torch.autograd.grad(y, [x], d_y)
    assert [function for function, _ in calls] == ["forward", "forward"]
    assert worst_error([d_x], [want[1]]) < TOLERANCE[x.real.dtype]
    calls.clear()
    y = kron_matmul(x.detach(), factors, backend="cpu")
    d_factors = torch.autograd.grad(y, factors, d_y)
    assert [function for function, _ in calls] == ["forward", "backward"]
    assert calls[1][1]["d_x"].numel() == 0
    assert worst_error(d_factors, want[2:]) < TOLERANCE[x.real.dtype]
    assert not kron_matmul(x.detach(), [w.detach() for w in factors], backend="cpu").requires_grad


@pytest.mark.parametrize("batch", [1, 7, 40, 150])
@shapes_by_name
@types
def test_bits(name, batch, dtype, monkeypatch):
    """Those of a vector do not depend on the threads; those of all gradients are repeatable."""
    x, factors = case(SHAPES[name], (batch,), dtype)
    d_y = upstream(x, factors)
    by_threads = {}
    for threads in ("1", "2", "5"):
        monkeypatch.setenv("KRON_NUM_THREADS", threads)
        by_threads[threads] = ours(x, factors, d_y)
        for once, again in zip(by_threads[threads], ours(x, factors, d_y), strict=True):
            assert torch.equal(once, again)
        assert worst_error(by_threads[threads], exact(x, factors, d_y)) < TOLERANCE[x.real.dtype]
    for results in by_threads.values():
        assert torch.equal(results[0], by_threads["1"][0])


@types
def test_threads_share_a_large_batch(dtype, monkeypatch):
    x, factors = case([(2, 2)] * 6, (3001,), dtype)
    d_y = upstream(x, factors)
    results = []
    for threads in ("1", "3"):
        monkeypatch.setenv("KRON_NUM_THREADS", threads)
        results.append(ours(x, factors, d_y))
        assert worst_error(results[-1], exact(x, factors, d_y)) < TOLERANCE[x.real.dtype]
    assert torch.equal(results[0][0], results[1][0])


@types
def test_vectors_may_lie_anywhere(dtype):
    factors = case([(2, 2), (3, 3)], (), dtype, requires_grad=False)[1]
    w = dense(factors)
    vectors = torch.randn(6, 5, 7, dtype=dtype)
    forms = [vectors.permute(2, 1, 0), vectors[:, 0].mT[::2], vectors[:, :1, 0].mT.expand(20, 6)]
    forms += [vectors.permute(2, 1, 0).conj(), vectors[:, 0, 0]]
    if dtype.is_complex:
        forms.append(vectors[:, 0].mT.conj().imag)  # a view that is marked as negative
    for x in forms:
        torch.testing.assert_close(kron_matmul(x, factors, backend="cpu"), x.to(dtype) @ w.T)
    x = forms[0].contiguous()
    lying = [w.T.contiguous().T.conj() for w in factors]
    torch.testing.assert_close(kron_matmul(x, lying, backend="cpu"), x @ dense(lying).T)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_upstream_gradients_may_be_conjugated_or_expanded(dtype):
    x, factors = case(SHAPES["mixed"], (5,), dtype)
    d_y = upstream(x, factors)
    for given in (d_y.conj(), d_y[:1].expand(5, -1), d_y.T.contiguous().T):
        want = exact(x, factors, given.resolve_conj())
        assert worst_error(ours(x, factors, given), want) < TOLERANCE[x.real.dtype]


@pytest.mark.parametrize(
    ("batch", "shapes"),
    [((0,), [(2, 3), (3, 2)]), ((2, 0), [(2, 2)]), ((4,), [(0, 2), (2, 2)])],
)
@types
def test_nothing_to_compute(batch, shapes, dtype):
    x, factors = case(shapes, batch, dtype)
    y, *gradients = ours(x, factors, upstream(x, factors))
    assert y.shape == (*batch, math.prod(p for p, _ in shapes))
    assert [d.shape for d in gradients] == [t.shape for t in (x, *factors)]
    assert all(t.eq(0).all() for t in (y, *gradients))


@pytest.mark.parametrize("value", [math.nan, math.inf])
@types
def test_what_is_not_finite_stays_so(value, dtype):
    for name in ("2x2s", "3 137", "tall"):
        x, factors = case(SHAPES[name], (20,), dtype, requires_grad=False)
        bad = x.clone()
        bad[3, 0] = value
        y = kron_matmul(bad, factors, backend="cpu")
        assert not y[3].isfinite().any()
        assert torch.equal(y[4:], kron_matmul(x, factors, backend="cpu")[4:])
        factors[0][0, 0] = value
        y = kron_matmul(x, factors, backend="cpu")
        rows = y.shape[1] // factors[0].shape[0]
        assert not y[:, :rows].isfinite().any()
        assert y[:, rows:].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_for_storage(dtype):
    x, factors = case(SHAPES["mixed"], (9,), dtype)
    d_y = upstream(x, factors)
    have = ours(x, factors, d_y)
    assert {t.dtype for t in have} == {dtype}
    wide = [t.detach().float().requires_grad_() for t in (x, *factors)]
    want = ours(wide[0], wide[1:], d_y.float())
    assert all(torch.equal(a, b.to(dtype)) for a, b in zip(have, want, strict=True))


def test_whole_numbers_are_for_the_reference(caplog):
    x, factors = torch.tensor([2**40 + 1, 1]), [torch.tensor([[1, 1], [0, 1]])]
    assert kron_matmul(x, factors).tolist() == [2**40 + 2, 1]
    with pytest.raises(RuntimeError, match=r"it takes no torch\.int64"):
        kron_matmul(x, factors, backend="cpu")


def test_auto_leaves_large_factors_to_the_reference():
    for n in (32, 33):
        x, factors = case([(n, n)] * 2, (9,), torch.float32, requires_grad=False)
        backend = "cpu" if n == 32 else "reference"
        y, other = kron_matmul(x, factors), "reference" if n == 32 else "cpu"
        assert torch.equal(y, kron_matmul(x, factors, backend=backend))
        assert not torch.equal(y, kron_matmul(x, factors, backend=other))


def test_without_a_compiler(monkeypatch, caplog):
    x, factors = case(SHAPES["2x2s"], (3,), torch.float32, requires_grad=False)
    monkeypatch.setenv("CXX", "no-such-compiler")
    kernel.library.cache_clear()
    backends.log_once.cache_clear()
    try:
        caplog.set_level(logging.INFO)
        assert torch.equal(kron_matmul(x, factors), kron_matmul(x, factors, backend="reference"))
        assert "kron_matmul runs on the reference backend: cpu:" in caplog.text
        with pytest.raises(RuntimeError, match=r"install g\+\+"):
            kron_matmul(x, factors, backend="cpu")
    finally:
        kernel.library.cache_clear()


def test_transforms_are_for_the_reference():
    x, factors = case(SHAPES["tall"], (4,), torch.float64, requires_grad=False)
    each = torch.func.vmap(lambda v: kron_matmul(v, factors))(x)
    torch.testing.assert_close(each, kron_matmul(x, factors))
    torch.func.jacrev(lambda v: kron_matmul(v, factors))(x[0])
    with pytest.raises(RuntimeError, match=r"torch\.func"):
        torch.func.vmap(lambda v: kron_matmul(v, factors, backend="cpu"))(x)


def arguments(dtype, shapes=((2, 3), (2, 2), (3, 2))):
    """Those of the operators of both passes."""
    x, factors = case(shapes, (5,), dtype, requires_grad=False)
    same = (x, flatten(factors), shapes_of(factors), dtype.is_complex, 2)
    return same, (upstream(x, factors), *same)


@types
def test_opcheck(dtype, monkeypatch):
    monkeypatch.undo()  # opcheck compares results that it asked not to be written
    forward, backward = arguments(dtype)
    for needs in [(True, True), (True, False), (False, True), (False, False)]:
        given = [t.clone().requires_grad_(need) for t, need in zip(forward[:2], needs, strict=True)]
        torch.library.opcheck(torch.ops.kron_plugin.kron_matmul_cpu.default, (*given, *forward[2:]))
        called = torch.ops.kron_plugin.kron_matmul_cpu_backward.default
        torch.library.opcheck(called, (*backward, *needs))


def spoilt(value):
    """Other values of the same kind, all wrong for an operator."""
    if isinstance(value, torch.Tensor):
        yield from (value[:, :-1], value.repeat(1, 2), value[:0].T) if value.dim() > 1 else ()
        yield from (value.flatten()[:-1], value.new_zeros(0), value.to(torch.float16))
        yield value.to(torch.float64 if value.dtype == torch.float32 else torch.float32)
    elif isinstance(value, list):
        yield from ([], value[:-1], value[:-2], [*value, 2, 2], [-n for n in value], [2**31] * 6)
    elif not isinstance(value, bool):
        yield from (0, -1, 2**40)


@types
def test_a_call_with_what_does_not_fit_raises(dtype):
    names = torch.ops.kron_plugin.kron_matmul_cpu, torch.ops.kron_plugin.kron_matmul_cpu_backward
    forward, backward = arguments(dtype)
    count = 0
    for called, given in zip(names, (forward, (*backward, True, True)), strict=True):
        called(*given)
        for i, value in enumerate(given):
            for wrong in spoilt(value):
                with pytest.raises((ValueError, RuntimeError)):
                    called(*given[:i], wrong, *given[i + 1 :])
                count += 1
    assert count > 40


@types
def test_compiled(dtype):
    x, factors = case(SHAPES["mixed"], (6,), dtype)
    d_y = upstream(x, factors)
    compiled = torch.compile(
        lambda x, *factors: kron_matmul(x, factors, backend="cpu"),
        fullgraph=True,
        backend="aot_eager",
    )
    y = compiled(x, *factors)
    have = y, *torch.autograd.grad(y, [x, *factors], d_y)
    assert all(torch.equal(a, b) for a, b in zip(have, ours(x, factors, d_y), strict=True))


def test_traced():
    x, factors = case(SHAPES["mixed"], (6,), torch.complex64, requires_grad=False)
    traced = torch.jit.trace(lambda x, *factors: kron_matmul(x, factors), (x, *factors))
    other, factors = case(SHAPES["mixed"], (9,), torch.complex64, requires_grad=False)
    assert torch.equal(traced(other, *factors), kron_matmul(other, factors))
