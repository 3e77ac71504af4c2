import pytest
import torch

from kron_plugin.ops import dense, join, kron_matmul, modrelu, split
from kron_plugin.ops.backends import Problem
from kron_plugin.ops.kron import dispatch

SHAPES = [
    [(2, 2)] * 7,
    [(3, 3), (137, 137)],
    [(16, 16), (32, 32)],
    [(5, 5)],
    [(2, 4), (4, 2)],
    [(3, 1), (2, 5), (4, 3)],
]


def make_factors(shapes, dtype, requires_grad=False):
    return [torch.randn(*s, dtype=dtype, requires_grad=requires_grad) for s in shapes]


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("shapes", SHAPES)
def test_kron_matmul_equals_the_dense_product(shapes, dtype):
    factors = make_factors(shapes, dtype, requires_grad=True)
    w = dense(factors)
    x = torch.randn(2, 3, w.shape[1], dtype=dtype, requires_grad=True)
    y, expected = kron_matmul(x, factors), x @ w.T
    torch.testing.assert_close(y, expected)

    upstream = torch.randn_like(y)
    grads = torch.autograd.grad(y, [x, *factors], upstream)
    torch.testing.assert_close(grads, torch.autograd.grad(expected, [x, *factors], upstream))


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("shapes", [[(2, 2)] * 3, [(2, 3), (3, 2)], [(5, 5)]])
def test_kron_matmul_gradients(shapes, dtype):
    factors = make_factors(shapes, dtype, requires_grad=True)
    x = torch.randn(2, dense(factors).shape[1], dtype=dtype, requires_grad=True)
    torch.autograd.gradcheck(lambda x, *fs: kron_matmul(x, fs), (x, *factors))
    torch.autograd.gradgradcheck(lambda x, *fs: kron_matmul(x, fs), (x, *factors))


def test_kron_matmul_takes_real_vectors_with_complex_factors():
    factors = make_factors([(2, 2), (3, 3)], torch.complex128)
    x = torch.randn(4, 6, dtype=torch.float64)
    torch.testing.assert_close(kron_matmul(x, factors), x.to(torch.complex128) @ dense(factors).T)


def test_kron_matmul_of_no_vectors():
    factors = make_factors([(2, 3), (3, 2)], torch.float64)
    assert kron_matmul(torch.ones(2, 0, 6, dtype=torch.float64), factors).shape == (2, 0, 6)


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        ([], "factors must be one or more matrices .* not none"),
        ([torch.ones(2)], r"factors must be .* not a tensor of shape \(2,\)"),
        (torch.ones(5, 5), r"factors must be .* not a tensor of shape \(5,\), a tensor of"),
        ([torch.ones(5, 5), [1.0]], "factors must be .* not a list"),
        ([torch.ones(2, 2), torch.ones(3, 3)], "factors 2x2, 3x3 take vectors of size 6, but x"),
        ([torch.ones(4, 5, 5)], r"factors in batches of \[\(4,\)\] do not .* x of shape \(3, 5\)"),
        ([torch.ones(2, 5, 5), torch.ones(3, 1, 1)], r"factors in batches of \[\(2,\), \(3,\)\]"),
    ],
)
def test_kron_matmul_says_what_does_not_fit(factors, message):
    with pytest.raises(ValueError, match=f"kron_matmul: {message}"):
        kron_matmul(torch.ones(3, 5), factors)


def test_kron_matmul_wants_vectors():
    with pytest.raises(ValueError, match="kron_matmul: x must hold vectors"):
        kron_matmul(torch.tensor(1.0), [torch.ones(1, 1)])


def test_kron_matmul_takes_factors_from_anywhere():
    factors, x = torch.randn(3, 2, 2), torch.randn(4, 8)
    expected = x @ dense([*factors]).T
    for given in (factors, tuple(factors), iter(factors), (w for w in factors)):
        torch.testing.assert_close(kron_matmul(x, given), expected)


BATCHES = [
    ((4,), [(4,), (4,)]),
    ((), [(3,), ()]),
    ((2, 3), [(3,), ()]),
    ((3,), [(2, 1), (3,)]),
    ((2, 1, 2), [(2, 2, 1), (1, 1)]),
    ((0,), [(1,), ()]),
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize(("vectors", "batches"), BATCHES)
def test_factors_may_come_in_batches(vectors, batches, dtype):
    sizes = [(2, 1), (2, 3)]
    factors = make_factors(
        [(*batch, *size) for batch, size in zip(batches, sizes, strict=True)], dtype, True
    )
    x = torch.randn(*vectors, 3, dtype=dtype, requires_grad=True)
    leading = torch.broadcast_shapes(vectors, *batches)
    y = kron_matmul(x, factors)
    assert y.shape == (*leading, 4)
    every = [w.expand(*leading, *w.shape[-2:]).flatten(0, -3) for w in factors]
    matrices = [torch.kron(*pair) for pair in zip(*every, strict=True)]
    torch.testing.assert_close([*dense(factors).expand(*leading, 4, 3).flatten(0, -3)], matrices)
    rows = [w @ v for w, v in zip(matrices, x.expand(*leading, 3).flatten(0, -2), strict=True)]
    torch.testing.assert_close([*y.flatten(0, -2)], rows)
    torch.autograd.gradcheck(lambda x, *fs: kron_matmul(x, fs), (x, *factors))


def test_batches_of_factors_are_for_the_reference():
    x, factors = torch.ones(4), [torch.ones(3, 4, 4)]
    assert kron_matmul(x, factors, backend="reference").shape == (3, 4)
    with pytest.raises(RuntimeError, match="backend='cuda' cannot serve"):
        kron_matmul(x, factors, backend="cuda")
    on_gpu = Problem(torch.device("cuda"), torch.float32, False, is_batched=True)
    assert dispatch.BACKENDS.choose("auto", on_gpu) == "reference"
    with pytest.raises(RuntimeError, match="takes no batches of factors"):
        dispatch.BACKENDS.choose("cuda", on_gpu)


@pytest.mark.parametrize("batch", [(), (4,)])
def test_kron_matmul_is_one_graph(batch):
    factors = make_factors([(*batch, 2, 2)] * 2, torch.complex64)

    class Product(torch.nn.Module):
        def forward(self, x, *factors):
            return kron_matmul(x, factors)

    x = torch.randn(4, 4)
    expected = kron_matmul(x, factors)
    compiled = torch.compile(Product(), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, *factors), expected)
    exported = torch.export.export(Product(), (x, *factors), strict=True).module()
    torch.testing.assert_close(exported(x, *factors), expected)


def test_modrelu_keeps_the_phase_and_moves_the_modulus():
    z = torch.polar(
        torch.tensor([2.0, 0.5, 1.0], dtype=torch.float64),
        torch.tensor([0.3, -1.0, 3.0], dtype=torch.float64),
    )
    bias = torch.tensor([-0.5, -0.7, 0.25], dtype=torch.float64)
    out = modrelu(z, bias)
    torch.testing.assert_close(out.abs(), torch.tensor([1.5, 0.0, 1.25], dtype=torch.float64))
    torch.testing.assert_close(out[::2].angle(), z[::2].angle())


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_modrelu_gradients_are_right_and_finite_where_it_has_none(dtype):
    z = torch.randn(8, dtype=dtype, requires_grad=True)
    bias = torch.randn(8, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(modrelu, (z, bias))
    torch.autograd.gradgradcheck(modrelu, (z, bias))

    z = torch.zeros(2, dtype=dtype, requires_grad=True)
    bias = torch.tensor([0.1, -0.1], dtype=torch.float64, requires_grad=True)
    modrelu(z, bias).abs().sum().backward()
    assert z.grad.abs().eq(0).all()
    assert bias.grad.isfinite().all()

    z = torch.tensor([3, 3 + 4j] if dtype.is_complex else [3, -5], dtype=dtype, requires_grad=True)
    bias = torch.tensor([-3.0, -5.0], dtype=torch.float64, requires_grad=True)  # at the edge
    modrelu(z, bias).abs().sum().backward()
    assert z.grad.isfinite().all()
    assert bias.grad.isfinite().all()


def test_split_and_join_are_inverse():
    z = torch.randn(3, 4, dtype=torch.complex64)
    assert torch.equal(join(split(z)), z)
    assert torch.equal(split(z)[..., :4], z.real)


def test_the_widest_type_among_vectors_and_factors_is_computed_in():
    x, real = torch.ones(4, dtype=torch.float64), torch.eye(2)
    for factors in ([real, 1j * real], [1j * real, real]):
        y = kron_matmul(x, factors)
        assert y.dtype == torch.complex128
        assert torch.equal(y, 1j * x)
