"""The arguments of a recurrence, in the one order that all code below the checks uses."""

from itertools import zip_longest
from math import prod
from typing import List, NamedTuple, Optional, Sequence

from torch import Tensor

from .. import checks
from ..kron.flat import Layout
from .cell import Cell

GRADIENTS = 5  # as many arguments have one: those before `lengths`


class Arguments(NamedTuple):
    """The arguments of the fused backends, and of their operators.

    Letters: T steps, B sequences, S parts of the state, K products, F factors of one, N units; C is
    2 for complex factors and 1 for real ones, W = C·N.
    """

    x: Tensor  # shape: (T, B, K·W), or with weight (T, B, I) or (T, B) of integers
    factors: Tensor  # shape: (Σ P_f Q_f C,), real: those of the first product, then of the next
    bias: Tensor
    state: Tensor  # shape: (S, B, W), before the first step
    weight: Optional[Tensor]  # shape: (I, K·W)
    lengths: Optional[Tensor]  # shape: (B,)
    shapes: List[int]  # P_0, Q_0, P_1, … of the first product, then of the next
    counts: List[int]  # how many factors each product has
    is_complex: bool
    activation: str
    every: int  # states are kept once in so many steps
    threads: int  # of the CPU backend; the same backwards, because it sets the layout of `kept`

    @property
    def steps(self) -> int:
        return self.x.shape[0]

    @property
    def batch(self) -> int:
        return self.state.shape[1]

    @property
    def width(self) -> int:
        """W, numbers in an output."""
        return self.state.shape[2]

    @property
    def size(self) -> int:
        """N, units."""
        return self.width // (2 if self.is_complex else 1)

    @property
    def segments(self) -> int:
        """Stretches of `every` steps, the last perhaps shorter."""
        return -(-self.steps // self.every)

    @property
    def is_tokens(self) -> bool:
        return self.weight is not None and not self.x.is_floating_point()

    @property
    def symbols(self) -> int:
        """I, rows of the weight; 0 without one."""
        return 0 if self.weight is None else self.weight.shape[0]

    @property
    def inputs(self) -> int:
        """The form of input, as kernels take it: 0 for u itself, −1 for tokens, else I."""
        return -1 if self.is_tokens else self.symbols

    @property
    def layout(self) -> Layout:
        return Layout(tuple(self.shapes), tuple(self.counts), self.is_complex)

    def check(self, cell: Cell) -> None:
        """Raise a ValueError unless each array has what a kernel will read.

        Anybody can call operators, with anything.
        """
        tensors = (self.x, self.factors, self.bias, self.state, self.weight, self.lengths)
        settings = (self.layout, self.activation, self.every)
        checks.once(self._check, cell, tensors, settings)

    def _check(self, cell: Cell) -> None:
        operation, h0, counts = cell.operation, self.state, self.counts
        checks.require(operation, h0.dim() == 3, "state has {} axes, expected 3", h0.dim())
        shapes = self.shapes
        fit = len(shapes) % 2 == 0 and all(size >= 1 for size in shapes)
        checks.require(operation, fit, "shapes={} must be pairs of sizes of at least 1", shapes)
        entries = sum(p * q for p, q in zip(shapes[::2], shapes[1::2], strict=True))
        size = (entries * (1 + self.is_complex),)
        checks.check_array(operation, "factors", self.factors, size, h0, computed=True)
        expected = (cell.products, len(shapes) // 2)
        fit = min(counts, default=0) >= 1 and (len(counts), sum(counts)) == expected
        message = "counts={} must be {} numbers of factors, {} in all"
        checks.require(operation, fit, message, counts, *expected)
        check(cell, self.x, self.layout, self.bias, h0.unbind(), self.weight, self.activation)
        checks.check_lengths(operation, self.lengths, self.x)
        checks.require(operation, self.every >= 1, "every={} must be at least 1", self.every)


def check(
    cell: Cell,
    x: Tensor,
    layout: Layout,
    bias: Tensor,
    state: Sequence[Tensor],
    weight: Optional[Tensor],
    activation: str,
) -> None:
    """Raise a ValueError unless all arguments but the factors' entries fit together."""

    def require(condition: bool, message: str, *values) -> None:
        checks.require(cell.operation, condition, message, *values)

    products, is_complex = layout.products, layout.is_complex
    n = prod(products[0][::2])
    for gate, shapes in zip_longest(cell.gates, products):
        rows, columns = prod(shapes[::2]), prod(shapes[1::2])
        message = "factors{} make a {}x{} matrix; the recurrence needs a square one{}"
        size = f", {n}x{n}" if gate else ""
        require(rows == columns == n, message, of_gate(gate), rows, columns, size)
    known = activation in cell.activations
    require(known, "activation={!r}: choose from {}", activation, list(cell.activations))
    needs_real = cell.is_real or cell.activations[activation].is_real
    message = "activation={!r} needs real factors" if activation else "factors must be real"
    require(not (is_complex and needs_real), message, activation)
    width = 2 * n if is_complex else n
    fit = x.dim() >= 2 and x.shape[0] >= 1
    require(fit, "x needs at least one step, has shape {}", tuple(x.shape))
    bias_size = cell.bias_size(n, is_complex, activation)
    checks.check_shape(cell.operation, "bias", bias, (bias_size,))
    message = "state must be {} tensors: {}"
    require(len(state) == len(cell.state), message, len(cell.state), ", ".join(cell.state))
    parts = {f"{name}0": part for name, part in zip(cell.state, state, strict=True)}
    for name, part in parts.items():
        checks.check_shape(cell.operation, name, part, (x.shape[1], width))
    checks.check_input(cell.operation, x, weight, cell.products * width)
    tensors = {"x": x, "bias": bias, "weight": weight, **parts}
    del tensors[f"{cell.state[0]}0"]
    checks.check_alike(cell.operation, state[0], tensors)


def of_gate(gate: Optional[str]) -> str:
    """The name of the product, if there are several."""
    return f" of gate {gate}" if gate else ""
