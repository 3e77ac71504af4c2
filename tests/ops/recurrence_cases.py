"""Random recurrences of every cell for the tests, and the same with dense matrices."""

from math import prod
from typing import Any, List, NamedTuple, Optional, Tuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from kron_plugin.ops import dense, join, modrelu, split
from kron_plugin.ops.backends import compute_type
from kron_plugin.ops.cells import gru, lstm, rnn

RECURRENCES = {"rnn": rnn.recurrence, "lstm": lstm.recurrence, "gru": gru.recurrence}


class Kind(NamedTuple):
    """A cell, its numbers and its nonlinearity."""

    cell: str
    is_complex: bool = False
    activation: str = ""


KRU = Kind("rnn", True, "modrelu")
LSTM = Kind("lstm")
KINDS = {
    "kru": KRU,
    "complex identity": Kind("rnn", True, "identity"),
    "real modrelu": Kind("rnn", False, "modrelu"),
    "real tanh": Kind("rnn", False, "tanh"),
    "real identity": Kind("rnn", False, "identity"),
    "lstm": LSTM,
    "gru": Kind("gru"),
}
ONE_OF_EACH_CELL = ["kru", "lstm", "gru"]

SHAPES = {
    "2x2s": [(2, 2)] * 7,
    "3,137": [(3, 3), (137, 137)],
    "16,32": [(16, 16), (32, 32)],
    "wide first": [(2, 4), (4, 2)],
    "tall first": [(3, 2), (2, 3), (2, 2)],
    "one": [(20, 20)],
    "mixed": [(2, 2), (3, 3), (2, 2), (2, 2), (5, 5), (2, 2)],
}


class Case(NamedTuple):
    """Arguments of a recurrence, and gradients to send back from its results."""

    kind: Kind
    x: Tensor
    factors: List[List[Tensor]]
    bias: Tensor
    state: Tuple[Tensor, ...]
    lengths: Optional[Tensor]
    weight: Optional[Tensor]
    d_state: Tuple[Tensor, ...]
    d_outputs: Tensor

    def leaves(self) -> List[Tensor]:
        factors = [w for product in self.factors for w in product]
        tensors = [self.x, *factors, self.bias, *self.state, self.weight]
        return [t for t in tensors if t is not None and t.requires_grad]


def random_factor(p: int, q: int, dtype: torch.dtype) -> Tensor:
    """A nearly unitary factor, so that long sequences neither vanish nor explode."""
    size = max(p, q)
    unitary = torch.linalg.qr(torch.randn(size, size, dtype=dtype))[0][:p, :q]
    return (unitary + 0.05 / size * torch.randn(p, q, dtype=dtype)).contiguous().requires_grad_()


def several(shapes: List[Tuple[int, int]], count: int) -> List[List[Tuple[int, int]]]:
    """Factor sizes for `count` products of one size; the factors need not be alike."""
    n = prod(p for p, _ in shapes)
    return [shapes, shapes[::-1], [(n, n)] if n <= 32 else shapes, shapes][:count]


def random_case(
    kind: Kind = KRU,
    shapes: List[Tuple[int, int]] = SHAPES["2x2s"],
    batch: int = 3,
    steps: int = 2,
    form: str = "dense",
    with_lengths: bool = False,
    dtype: torch.dtype = torch.float64,
    inputs: int = 3,
) -> Case:
    """A random case, drawn in double precision, so that it is the same in every type. All but
    lengths and tokens requires a gradient."""
    torch.manual_seed(0)
    cell = RECURRENCES[kind.cell].cell
    n = prod(p for p, _ in shapes)
    width = 2 * n if kind.is_complex else n
    element = torch.complex128 if kind.is_complex else torch.float64

    def normal(*size: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(*size, dtype=torch.float64)).requires_grad_()

    x = {
        "dense": lambda: normal(steps, batch, cell.products * width, scale=0.3),
        "features": lambda: normal(steps, batch, inputs),
        "tokens": lambda: torch.randint(0, inputs, (steps, batch)),
    }[form]()
    case = Case(
        kind=kind,
        x=x,
        factors=[
            [random_factor(p, q, element) for p, q in product]
            for product in several(shapes, cell.products)
        ],
        bias=normal(cell.bias_size(n, kind.is_complex, kind.activation), scale=0.1),
        state=tuple(normal(batch, width) for _ in cell.state),
        lengths=torch.randint(1, steps + 1, (batch,)) if with_lengths else None,
        weight=None if form == "dense" else normal(inputs, cell.products * width, scale=0.3),
        d_state=tuple(normal(batch, width).detach() for _ in cell.state),
        d_outputs=normal(steps, batch, width).detach(),
    )
    return case if dtype == torch.float64 else cast(case, dtype)


def cast(case: Case, dtype: torch.dtype) -> Case:
    """The same case in another type; with half precision, factors have the type of computation."""

    def convert(value: Any, dtype: torch.dtype) -> Any:
        if not isinstance(value, Tensor) or not (value.is_floating_point() or value.is_complex()):
            return value
        dtype = dtype.to_complex() if value.is_complex() else dtype
        return value.detach().to(dtype).requires_grad_(value.requires_grad)

    factors = tree_map(lambda w: convert(w, compute_type(dtype)), case.factors)
    others = tree_map(lambda t: convert(t, dtype), case._replace(factors=[]))
    return others._replace(factors=factors)


def placed(case: Any, backend: Optional[str]) -> Any:
    """The case, or any value with tensors, on the backend's device: for "cuda" the GPU, if there
    is one."""
    if backend != "cuda" or not torch.cuda.is_available():
        return case

    def move(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.detach().to("cuda").requires_grad_(value.requires_grad)

    return tree_map(move, case)


def forward(
    case: Case, backend: str, need_output: bool = True, checkpoint_every: int = 1
) -> Tuple[Tensor, Tuple[Tensor, ...]]:
    """The outputs and the last state."""
    arguments = (case.x, case.factors, case.bias, case.state, case.lengths, case.weight)
    settings = (need_output, checkpoint_every, backend, case.kind.activation)
    return RECURRENCES[case.kind.cell](*arguments, *settings)


def run(case: Case, backend: str, **options) -> List[Tensor]:
    """The last state, the outputs if they are wanted, and the gradients of the leaves."""
    case = placed(case, backend)
    outputs, state = (
        forward_dense(case) if backend == "dense" else forward(case, backend, **options)
    )
    results, upstream = [*state], [*case.d_state]
    if options.get("need_output", True):
        results.append(outputs)
        upstream.append(case.d_outputs)
    return [*results, *torch.autograd.grad(results, case.leaves(), upstream)]


def forward_dense(case: Case) -> Tuple[Tensor, Tuple[Tensor, ...]]:
    """A recurrence by its definition, with Kronecker products as dense matrices."""
    x, state, outputs = case.x, case.state, []
    if case.weight is not None:
        x = x @ case.weight if x.is_floating_point() else case.weight[x]
    matrices = [dense(product) for product in case.factors]
    for t, u in enumerate(x):
        new = STEPS[case.kind.cell](case, matrices, u, state)
        if case.lengths is not None:
            live = (t < case.lengths)[:, None]
            new = tuple(torch.where(live, a, b) for a, b in zip(new, state, strict=True))
        state = new
        outputs.append(state[0])
    return torch.stack(outputs), state


def rnn_step(case, matrices, u, state):
    if case.kind.is_complex:
        z = join(state[0]) @ matrices[0].T + join(u)
        modrelu_or_not = case.kind.activation == "modrelu"
        return (split(modrelu(z, case.bias)) if modrelu_or_not else split(z) + case.bias,)
    z = state[0] @ matrices[0].T + u
    if case.kind.activation == "modrelu":
        return (modrelu(z, case.bias),)
    return (torch.tanh(z + case.bias) if case.kind.activation == "tanh" else z + case.bias,)


def lstm_step(case, matrices, u, state):
    """torch's own."""
    same = torch.eye(u.shape[1]).to(u)
    return torch.lstm_cell(u, state, same, torch.cat(matrices), case.bias, 0 * case.bias)


def gru_step(case, matrices, u, state):
    """torch's own."""
    same = torch.eye(u.shape[1]).to(u)
    *inside, b_h = case.bias.chunk(4)
    b_hh = torch.cat([torch.zeros_like(b_h), torch.zeros_like(b_h), b_h])
    return (torch.gru_cell(u, state[0], same, torch.cat(matrices), torch.cat(inside), b_hh),)


STEPS = {"rnn": rnn_step, "lstm": lstm_step, "gru": gru_step}


def worst_error(results: List[Tensor], expected: List[Tensor]) -> float:
    """The largest deviation, relative to the largest entry of its tensor. NaN makes it infinite."""
    worst = 0.0
    for ours, theirs in zip(results, expected, strict=True):
        assert ours.shape == theirs.shape
        if not theirs.numel():
            continue
        scale = theirs.detach().abs().max().item() or 1.0
        error = (ours.detach().to(theirs) - theirs.detach()).abs().max().item() / scale
        worst = max(worst, error if error == error else float("inf"))
    return worst


def equal(results: List[Tensor], expected: List[Tensor]) -> bool:
    """Whether all bits are the same."""
    return all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))
