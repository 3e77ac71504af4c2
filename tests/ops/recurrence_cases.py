"""Random recurrences for the tests, and the same recurrence written with a dense matrix."""

from math import prod
from typing import Any, List, NamedTuple, Optional, Tuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from kron_plugin.ops import dense, join, kron_rnn, modrelu, split

PAIRS = {
    "2x2s": [(2, 2)] * 7,
    "3,137": [(3, 3), (137, 137)],
    "16,32": [(16, 16), (32, 32)],
    "wide first": [(2, 4), (4, 2)],
    "tall first": [(3, 2), (2, 3), (2, 2)],
    "one": [(20, 20)],
    "large": [(512, 512)],
    "mixed": [(2, 2), (3, 3), (2, 2), (2, 2), (5, 5), (2, 2)],
}


class Case(NamedTuple):
    """Arguments of `kron_rnn`, and gradients to send back from its two results."""

    x: Tensor
    factors: List[Tensor]
    bias: Tensor
    h0: Tensor
    lengths: Optional[Tensor]
    weight: Optional[Tensor]
    activation: str
    d_states: Tensor
    d_last: Tensor

    def leaves(self) -> List[Tensor]:
        tensors = [self.x, *self.factors, self.bias, self.h0, self.weight]
        return [t for t in tensors if t is not None and t.requires_grad]


def random_factor(p: int, q: int, dtype: torch.dtype, noise: float = 0.05) -> Tensor:
    """Nearly unitary, so that long sequences neither fade nor explode."""
    size = max(p, q)
    unitary = torch.linalg.qr(torch.randn(size, size, dtype=dtype))[0][:p, :q]
    return (unitary + noise / size * torch.randn(p, q, dtype=dtype)).contiguous()


def random_case(
    shapes: List[Tuple[int, int]] = PAIRS["2x2s"],
    batch: int = 3,
    steps: int = 2,
    dtype: torch.dtype = torch.float64,
    is_complex: bool = True,
    activation: str = "modrelu",
    form: str = "dense",
    with_lengths: bool = False,
    seed: int = 0,
) -> Case:
    """Everything but lengths and tokens requires a gradient."""
    torch.manual_seed(seed)
    n = prod(p for p, _ in shapes)
    width = 2 * n if is_complex else n
    element = torch.complex(*torch.zeros(2, 1, dtype=dtype)).dtype if is_complex else dtype
    inputs = 3

    def normal(*size: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(*size, dtype=dtype)).requires_grad_()

    x = {
        "dense": lambda: normal(steps, batch, width, scale=0.3),
        "features": lambda: normal(steps, batch, inputs),
        "tokens": lambda: torch.randint(0, inputs, (steps, batch)),
    }[form]()
    return Case(
        x=x,
        factors=[random_factor(p, q, element).requires_grad_() for p, q in shapes],
        bias=normal(n if activation == "modrelu" else width, scale=0.1),
        h0=normal(batch, width),
        lengths=torch.randint(1, steps + 1, (batch,)) if with_lengths else None,
        weight=None if form == "dense" else normal(inputs, width, scale=0.3),
        activation=activation,
        d_states=torch.randn(steps, batch, width, dtype=dtype),
        d_last=torch.randn(batch, width, dtype=dtype),
    )


def cast(case: Case, dtype: torch.dtype) -> Case:
    """The same case in another precision."""
    element = torch.promote_types(dtype, torch.complex32)

    def convert(value):
        if isinstance(value, list):
            return [convert(item) for item in value]
        if not isinstance(value, Tensor) or not (value.is_floating_point() or value.is_complex()):
            return value
        target = element if value.is_complex() else dtype
        return value.detach().to(target).requires_grad_(value.requires_grad)

    return Case(*map(convert, case))


def placed(case: Any, backend: Optional[str]) -> Any:
    """The case, or whatever has tensors in it, where the backend works: on the GPU, if there is
    one, for "cuda"."""
    if backend != "cuda" or not torch.cuda.is_available():
        return case

    def move(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.detach().to("cuda").requires_grad_(value.requires_grad)

    return tree_map(move, case)


def run(case: Case, function=kron_rnn, **options) -> List[Tensor]:
    """[states,] last state, and the gradients of the leaves."""
    case = placed(case, options.get("backend"))
    states, last = function(
        case.x,
        case.factors,
        case.bias,
        case.h0,
        case.lengths,
        weight=case.weight,
        activation=case.activation,
        **options,
    )
    results, gradients = [last], [case.d_last]
    if states.numel():
        results, gradients = [states, last], [case.d_states, case.d_last]
    return [*results, *torch.autograd.grad(results, case.leaves(), gradients)]


def dense_rnn(x, factors, bias, h0, lengths=None, *, weight=None, activation="modrelu"):
    """`kron_rnn` by its definition, with the Kronecker product as a dense matrix."""
    matrix = dense(factors)
    if weight is not None:
        x = x @ weight if x.is_floating_point() else torch.nn.functional.embedding(x, weight)
    h, states = h0, []
    for t in range(x.shape[0]):
        if matrix.is_complex():
            z = join(h) @ matrix.T + join(x[t])
            if activation == "modrelu":
                new = split(modrelu(z, bias))
            else:
                new = split(z) + bias
        else:
            z = h @ matrix.T + x[t]
            new = {
                "modrelu": lambda z=z: modrelu(z, bias),
                "tanh": lambda z=z: torch.tanh(z + bias),
                "identity": lambda z=z: z + bias,
            }[activation]()
        h = new if lengths is None else torch.where((t < lengths)[:, None], new, h)
        states.append(h)
    return torch.stack(states), h


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
