"""The LSTM's recurrence: the definition against dense matrices and torch's LSTM, the CPU kernel
against the definition."""

import sys
from math import prod
from typing import List, NamedTuple, Optional, Tuple

import pytest
import torch
from torch import Tensor

from kron_plugin.ops import dense, kron_lstm
from kron_plugin.ops.kron.flat import flatten
from kron_plugin.ops.kron_lstm import cpu
from kron_plugin.ops.native import solve

from .recurrence_cases import placed, random_factor, worst_error

FAST = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]

# Factor shapes of the four gates.
GATES = {
    "2x2s": [[(2, 2)] * 5] * 4,
    "3,137": [[(3, 3), (137, 137)]] * 4,
    "one": [[(20, 20)]] * 4,
    "rectangular": [[(2, 4), (4, 2)], [(4, 2), (2, 4)], [(2, 1), (2, 2), (2, 4)], [(1, 2), (8, 4)]],
    "each its own": [[(2, 2)] * 4, [(16, 16)], [(4, 4), (4, 4)], [(2, 4), (8, 4)]],
}

# What to vary together: (batch, steps, form, with_lengths, options).
SETTINGS = [
    (1, 5, "dense", False, {}),
    (3, 1, "tokens", False, {"need_output": False}),
    (20, 5, "features", True, {"checkpoint_every": 2}),
    (33, 5, "tokens", True, {"checkpoint_every": 3}),
    (33, 3, "dense", True, {"need_output": False}),
]


class Case(NamedTuple):
    """Arguments of `kron_lstm`."""

    x: Tensor
    factors: List[List[Tensor]]
    bias: Tensor
    state: Tuple[Tensor, Tensor]
    lengths: Optional[Tensor]
    weight: Optional[Tensor]

    def leaves(self) -> List[Tensor]:
        factors = [w for gate in self.factors for w in gate]
        tensors = [self.x, *factors, self.bias, *self.state, self.weight]
        return [t for t in tensors if t is not None and t.requires_grad]


def random_case(
    shapes=GATES["2x2s"], batch=3, steps=4, form="dense", with_lengths=False, dtype=torch.float64
) -> Case:
    """Drawn in double precision, so that one seed gives the same case in any type."""
    n = prod(p for p, _ in shapes[0])

    def leaf(tensor: Tensor) -> Tensor:
        return tensor.to(dtype).requires_grad_()

    def normal(*size: int) -> Tensor:
        return leaf(0.5 * torch.randn(*size, dtype=torch.float64))

    x = {
        "dense": lambda: normal(steps, batch, 4 * n),
        "features": lambda: normal(steps, batch, 3),
        "tokens": lambda: torch.randint(0, 3, (steps, batch)),
    }[form]()
    return Case(
        x=x,
        factors=[[leaf(random_factor(*s, torch.float64)) for s in gate] for gate in shapes],
        bias=normal(4 * n),
        state=(normal(batch, n), normal(batch, n)),
        lengths=torch.randint(1, steps + 1, (batch,)) if with_lengths else None,
        weight=None if form == "dense" else normal(3, 4 * n),
    )


def run(case: Case, function=kron_lstm, **options) -> List[Tensor]:
    """[outputs,] last h and c, and the gradients of the leaves for fixed random gradients."""
    case = placed(case, options.get("backend"))
    outputs, state = function(
        case.x, case.factors, case.bias, case.state, case.lengths, weight=case.weight, **options
    )
    results = [*state, outputs] if outputs.numel() else [*state]
    generator = torch.Generator().manual_seed(1)
    upstream = [
        torch.randn(r.shape, dtype=torch.float64, generator=generator).to(r) for r in results
    ]
    return [*results, *torch.autograd.grad(results, case.leaves(), upstream)]


def dense_lstm(x, factors, bias, state, lengths=None, *, weight=None, need_output=True):
    """`kron_lstm` by its definition, with dense matrices, one sequence after the other."""
    w_i, w_f, w_g, w_o = [dense(gate).T for gate in factors]
    if weight is not None:
        x = x @ weight if x.is_floating_point() else weight[x]
    outputs, last = [], []
    for b in range(x.shape[1]):
        h, c = state[0][b], state[1][b]
        steps = x.shape[0] if lengths is None else int(lengths[b])
        states = []
        for t in range(steps):
            z_i, z_f, z_g, z_o = (x[t, b] + bias).chunk(4)
            i, f = torch.sigmoid(h @ w_i + z_i), torch.sigmoid(h @ w_f + z_f)
            g, o = torch.tanh(h @ w_g + z_g), torch.sigmoid(h @ w_o + z_o)
            c = f * c + i * g
            h = o * torch.tanh(c)
            states.append(h)
        outputs.append(torch.stack(states + [h] * (x.shape[0] - steps)))
        last.append((h, c))
    h_n, c_n = (torch.stack(parts) for parts in zip(*last, strict=True))
    return (torch.stack(outputs, 1) if need_output else h_n.new_empty(0)), (h_n, c_n)


@pytest.mark.parametrize("name", GATES)
@pytest.mark.parametrize("form", ["dense", "features", "tokens"])
def test_reference_matches_dense_matrices(name, form):
    case = random_case(GATES[name], form=form, with_lengths=True)
    assert worst_error(run(case, backend="reference"), run(case, dense_lstm)) < 1e-12


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_equals_torch_with_copied_weights(backend):
    n, steps, batch = 12, 7, 5
    theirs = torch.nn.LSTM(3, n).double()
    x, h0, c0 = (torch.randn(*s).double() for s in [(steps, batch, 3), (batch, n), (batch, n)])
    expected, (h_n, c_n) = theirs(x, (h0[None], c0[None]))
    outputs, state = kron_lstm(
        x,
        [[w] for w in theirs.weight_hh_l0.chunk(4)],
        theirs.bias_ih_l0 + theirs.bias_hh_l0,
        (h0, c0),
        weight=theirs.weight_ih_l0.T,
        backend=backend,
    )
    assert worst_error([outputs, *state], [expected, h_n[0], c_n[0]]) < 1e-14
    weights = list(theirs.parameters())
    ours = torch.autograd.grad(outputs.sum() + state[1].sum(), weights)
    assert worst_error(ours, torch.autograd.grad(expected.sum() + c_n.sum(), weights)) < 1e-13


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("name", GATES)
@pytest.mark.parametrize("setting", SETTINGS)
def test_kernel_matches_the_reference(name, setting, backend):
    *sizes, options = setting
    case = random_case(GATES[name], *sizes)
    expected = run(case, backend="reference", need_output=options.get("need_output", True))
    assert worst_error(run(case, backend=backend, **options), expected) < 1e-12


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("form", ["dense", "features", "tokens"])
@pytest.mark.parametrize("batch", [1, 21])
def test_single_precision_is_as_exact_as_the_reference(form, batch, backend):
    torch.manual_seed(0)
    exact = random_case(GATES["each its own"], batch, 5, form, True)
    torch.manual_seed(0)
    single = random_case(GATES["each its own"], batch, 5, form, True, torch.float32)
    expected = run(exact, backend="reference")
    usual = worst_error(run(single, backend="reference"), expected)
    assert worst_error(run(single, backend=backend), expected) < 3 * usual + 1e-6


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_half_precision_is_storage_only(backend):
    """Equal to float32 of the same numbers, rounded at the end."""
    case = random_case(with_lengths=True, dtype=torch.bfloat16)
    single = Case(
        x=case.x.detach().float().requires_grad_(),
        factors=[[w.detach().float().requires_grad_() for w in gate] for gate in case.factors],
        bias=case.bias.detach().float().requires_grad_(),
        state=tuple(s.detach().float().requires_grad_() for s in case.state),
        lengths=case.lengths,
        weight=None,
    )
    results = run(case, backend=backend)
    for have, want in zip(results, run(single, backend=backend), strict=True):
        assert have.dtype == torch.bfloat16
        torch.testing.assert_close(have.float(), want, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch", [1, 29])
def test_sigmoid_and_tanh_are_exact_to_rounding(dtype, batch):
    points = torch.cat([torch.linspace(-75, 75, 4001), torch.tensor([0.0, 1e-6, -1e-6, 1e-30])])
    points = points.to(dtype)
    n, zero, large = len(points), torch.zeros(batch, len(points)), torch.full((len(points),), 75.0)
    identity = [[torch.zeros(n, 1, dtype=dtype), torch.ones(1, n, dtype=dtype)]] * 4
    # c = σ(z_f) · 1 and h = tanh(c), with i g = 0 and o = 1; then c = c0.
    for forget, c0 in [(points, torch.ones(n)), (large, points)]:
        bias = torch.cat([large, forget, torch.zeros(n), large]).to(dtype)
        x = torch.zeros(1, batch, 4 * n, dtype=dtype)
        state = (zero.to(dtype), c0.expand(batch, n).to(dtype))
        _, (h, c) = kron_lstm(x, identity, bias, state, backend="cpu")
        wanted_c = forget.double().sigmoid() * c0.double()
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(c.double(), wanted_c.expand(batch, n), rtol=3 * eps, atol=0)
        wanted_h = c.double().tanh()
        torch.testing.assert_close(h.double(), wanted_h, rtol=3 * eps, atol=0)


@pytest.mark.parametrize("sizes", [[(2, 2), (2, 2)], [(1, 2), (4, 2)]])
def test_gradcheck(sizes):
    case = random_case([sizes] * 4, 3, 3, "features", True)

    def function(x, bias, h0, c0, weight, *factors):
        gates = [factors[k : k + 2] for k in range(0, 8, 2)]
        outputs, state = kron_lstm(
            x, gates, bias, (h0, c0), case.lengths, weight=weight, backend="cpu"
        )
        return outputs, *state

    factors = [w for gate in case.factors for w in gate]
    leaves = (case.x, case.bias, *case.state, case.weight, *factors)
    assert torch.autograd.gradcheck(function, leaves)


def test_both_ways_to_the_factors_gradient(monkeypatch):
    case = random_case(batch=9, steps=6)
    expected = run(case, backend="reference")
    solved = run(case, backend="cpu")
    monkeypatch.setitem(solve.MAX_CONDITION, torch.float64, 0.0)
    summed = run(case, backend="cpu")
    assert max(worst_error(solved, expected), worst_error(summed, expected)) < 1e-12
    assert any(not torch.equal(a, b) for a, b in zip(solved, summed, strict=True))


def test_checkpoints_and_repetition_change_no_bit(monkeypatch):
    monkeypatch.setenv("KRON_NUM_THREADS", "2")
    case = random_case(GATES["each its own"], 37, 11, "features", True, torch.float32)
    plain = run(case, backend="cpu")
    for every in (1, 2, 5, 11, 100, sys.maxsize):
        again = run(case, backend="cpu", checkpoint_every=every)
        assert all(torch.equal(a, b) for a, b in zip(again, plain, strict=True))


def test_what_stands_behind_a_sequence_end_does_not_matter():
    case = random_case(batch=3, steps=4)._replace(lengths=torch.tensor([2, 4, 3]))
    expected = run(case, backend="cpu")
    with torch.no_grad():
        case.x[2:, 0] = float("nan")
    assert worst_error(run(case, backend="cpu"), expected) == 0.0


@pytest.mark.parametrize("backend", FAST)
def test_gates_may_be_shut_for_good(backend):
    """By a bias of minus infinity."""
    case = random_case(batch=3, steps=4)
    with torch.no_grad():
        case.bias[::3] = -torch.inf
    results, expected = run(case, backend=backend), run(case, backend="reference")
    assert all(r.isfinite().all() for r in expected)
    assert worst_error(results, expected) < 1e-12


def test_what_is_not_finite_stays_so():
    case = random_case(batch=3, steps=6)
    with torch.no_grad():
        case.x[2, 1, 5] = float("nan")
    for backend in ("cpu", "reference"):
        outputs, (h, _) = kron_lstm(*case[:4], backend=backend)
        finite = outputs.isfinite().all(2)
        assert finite[:2].all()
        assert finite[:, [0, 2]].all()
        assert not finite[2:, 1].any()
        assert not h[1].isfinite().all()


@pytest.mark.parametrize("form", ["dense", "features", "tokens"])
def test_opcheck(form, monkeypatch):
    monkeypatch.undo()  # opcheck compares bits of results it asked not to be written
    case = random_case(form=form, with_lengths=True)
    flat = flatten([w for gate in case.factors for w in gate]).detach().requires_grad_()
    tensors = (case.x, flat, case.bias, *case.state, case.weight, case.lengths)
    for need_output, every in [(True, 1), (False, 2)]:
        settings = ([2] * 40, [5] * 4, need_output, every, 2, True)
        torch.library.opcheck(cpu.kron_lstm_cpu.operator, (*tensors, *settings))


def test_compiles_without_breaking_the_graph():
    case = random_case(form="features", with_lengths=True)
    leaves = case.leaves()

    def model(*leaves):
        outputs, (h, c) = kron_lstm(*case[:5], weight=case.weight, backend="cpu")
        return outputs.sum() + h.square().sum() + c.sum()

    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    ours = torch.autograd.grad(compiled(*leaves), leaves)
    assert worst_error(ours, torch.autograd.grad(model(*leaves), leaves)) < 1e-12


def test_double_backward_names_the_backend_that_has_it():
    case = random_case()
    _, (h, _) = kron_lstm(*case[:4], backend="cpu")
    (gradient,) = torch.autograd.grad(h.square().sum(), case.x, create_graph=True)
    with pytest.raises(RuntimeError, match="backend='reference'"):
        gradient.square().sum().backward()
    _, (h, _) = kron_lstm(*case[:4], backend="reference")
    (gradient,) = torch.autograd.grad(h.square().sum(), case.x, create_graph=True)
    gradient.square().sum().backward()


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_token_without_a_row_is_refused(backend):
    case = random_case(form="tokens")
    with pytest.raises(IndexError):
        run(case._replace(x=case.x + 1), backend=backend)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"factors": [[torch.eye(4)]] * 3}, "factors has 3 gates, expected 4"),
        ({"factors": [[torch.eye(4)], [], *[[torch.eye(4)]] * 2]}, "gate f must be real matrices"),
        ({"factors": [[torch.eye(4) + 0j]] * 4}, "gate i must be real matrices"),
        ({"factors": [[torch.eye(4)]] * 3 + [[torch.ones(2, 4)]]}, "gate o make a 2x4 matrix"),
        ({"factors": [[torch.eye(4).double()]] * 4}, "a factor has the type torch.float64"),
        ({"bias": torch.zeros(15)}, "with a bias of 4·3 it must be 3x3"),
        ({"bias": torch.zeros(17)}, r"bias has shape \(17,\), expected \(16,\)"),
        ({"state": (torch.zeros(3, 4), torch.zeros(2, 4))}, "c0 has shape"),
        ({"state": (torch.zeros(3, 4), torch.zeros(3, 4).double())}, "c0 has another type than h0"),
        ({"bias": torch.zeros(16, device="meta")}, "bias is on another device than h0, meta"),
        ({"factors": [[torch.ones(0, 0)]] * 4}, "of at least one row and column"),
        ({"x": torch.zeros(2, 3, 4)}, r"expected \(T, B, 16\) when no weight"),
        ({"lengths": torch.tensor([1, 2, 3])}, "lengths must be between 1 and the 2 steps"),
        ({"weight": torch.zeros(5, 4)}, r"weight has shape \(5, 4\), expected \(I, 16\)"),
        ({"checkpoint_every": 0}, "checkpoint_every=0 must be at least 1"),
        ({"backend": "abacus"}, "backend='abacus': choose one of auto, cuda, cpu, reference"),
    ],
)
def test_what_does_not_fit_is_named(changes, message):
    arguments = {
        "x": torch.zeros(2, 3, 16),
        "factors": [[torch.eye(2), torch.eye(2)]] * 4,
        "bias": torch.zeros(16),
        "state": (torch.zeros(3, 4), torch.zeros(3, 4)),
    }
    with pytest.raises(ValueError, match=message):
        kron_lstm(**{**arguments, **changes})
