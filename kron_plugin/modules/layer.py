"""The base of one layer in one direction: its factors and its initial state."""

from functools import partial, wraps
from typing import Any, Callable, List, Optional, Tuple, Union, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from ..ops.backends import compute_type
from ..ops.kron.flat import Flat, Layout, flatten
from ..ops.recurrence import Recurrence, State, Weights
from .arguments import choice, flag, place, whole
from .factors import MAX_SIZE, FactorSpec, format_factors, parse_factors
from .parameters import FactorList
from .unitary import (
    deviation_of,
    gram_errors,
    penalty_of,
    singular_range,
    singular_values,
    unitary_deviation,
    unitary_penalty,
)
from .unitary_map import UnitaryMap

UNITARY = ("none", "soft", "hard")


def without_autocast(method: Callable) -> Callable:
    """A method of `KronLayer` that computes in the precision of the parameters under autocast too.
    Half precision would round every step and lose long memories and small penalties."""

    @wraps(method)
    def call(self, *args, **kwargs):
        weight = self.weight
        device, dtype = weight.device.type, weight.dtype
        if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
            return method(self, *args, **kwargs)
        with torch.autocast(device, enabled=False):
            args, kwargs = tree_map(partial(_in_type, dtype=dtype), (args, kwargs))
            return method(self, *args, **kwargs)

    return call


def _in_type(value: Any, dtype: torch.dtype) -> Any:
    is_real = isinstance(value, Tensor) and value.is_floating_point()
    return value.to(dtype) if is_real else value


class KronLayer(nn.Module):
    """One recurrent layer in one direction whose recurrent matrices are Kronecker products.

    Parameters are real tensors; a complex factor has shape (P_f, Q_f, 2), real and imaginary part.
    Every square factor starts exactly unitary; all are marked with `param_group = "factors"`.

    Args:
        factors: the sizes of each product's factors.
        unitary: "soft" counts in `unitary_penalty`, "none" does not, and "hard" keeps every factor
            exactly unitary by training the matrices X_f of `UnitaryMap`.

    A subclass adds `weight` of shape (input_size, …) and `bias`, which may be None, calls
    `reset_parameters`, and defines `initial_state`, `run` and `available_backends`. The other
    arguments are those of `KRU`.
    """

    recurrence: Recurrence  # what it runs
    activation = ""
    weight: nn.Parameter
    bias: Optional[nn.Parameter]
    maps: List[UnitaryMap]  # a ModuleList; only with unitary="hard"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        factors: FactorSpec,
        *,
        complex: bool,
        unitary: str,
        angle: Optional[float] = None,
        backend: str,
        checkpoint_every: int,
        check_finite: bool,
        device: Union[str, torch.device, None] = None,
        dtype: Optional[torch.dtype] = None,
    ) -> None:
        super().__init__()
        self.input_size = whole("input_size", input_size)
        self.hidden_size = whole("hidden_size", hidden_size)
        self.complex = flag("complex", complex)
        self.unitary = choice("unitary", unitary, UNITARY)
        self.angle = angle
        self.recurrence.backends.check(backend)
        self.backend = backend
        self.checkpoint_every = whole("checkpoint_every", checkpoint_every)
        self.check_finite = flag("check_finite", check_finite)
        self.factor_sizes = parse_factors(factors, self.hidden_size)
        if self.input_size * self.output_size > MAX_SIZE:
            raise ValueError(
                f"input_size={input_size}: too large to weigh into {self.output_size} numbers;"
                " choose a smaller hidden_size"
            )
        is_hard = unitary == "hard"
        if is_hard and any(p != q for p, q in self.factor_sizes):
            raise ValueError(
                f"factors={format_factors(self.factor_sizes)!r}: unitary='hard' needs square ones;"
                " a product with rectangular factors has a null space"
            )
        where = place(device, dtype)
        sizes = self.factor_sizes * self.recurrence.cell.products
        tail = (2,) if complex else ()
        made = (nn.Parameter(torch.empty(p, q, *tail, **where)) for p, q in sizes)
        self.factors = FactorList(made, complex=complex, zero=is_hard, angle=angle)
        shapes = tuple(size for pair in sizes for size in pair)
        counts = (len(self.factor_sizes),) * self.recurrence.cell.products
        self.layout = Layout(shapes, counts, complex)
        if is_hard:
            maps = nn.ModuleList(UnitaryMap(p, q, complex, angle, device) for p, q in sizes)
            self.maps = cast(List[UnitaryMap], maps)

    @property
    def output_size(self) -> int:
        """Features of the output: 2N for complex factors, N for real ones."""
        return 2 * self.hidden_size if self.complex else self.hidden_size

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Start anew, with other random numbers."""
        self.factors.reset_parameters()
        for unitary_map in self.maps if self.unitary == "hard" else ():
            unitary_map.reset_parameters()

    def matrices(self) -> List[Tensor]:
        """The factors W_f, shape (P_f, Q_f) each, those of the first product first."""
        trained = self.factors()
        if self.unitary != "hard":
            return trained
        return [make(x) for make, x in zip(self.maps, trained, strict=True)]

    def offsets(self) -> Tensor:
        """The bias, or zeros if the layer has none."""
        if self.bias is not None:
            return self.bias
        cell = self.recurrence.cell
        size = cell.bias_size(self.hidden_size, self.complex, self.activation)
        return self.weight.new_zeros(size)

    def initial_state(self, batch: int) -> State:
        """The first state when the caller gives none."""
        raise NotImplementedError

    def given_state(self, state: State) -> State:
        """The first state when the caller gives one."""
        return state

    def products(self) -> List[List[Tensor]]:
        """The factors of each product, shape (P_f, Q_f) each."""
        matrices, count = self.matrices(), len(self.factor_sizes)
        return [matrices[i : i + count] for i in range(0, len(matrices), count)]

    def flat_factors(self) -> Flat:
        """The factors of each product in one vector, as the recurrence takes them fastest."""
        if self.unitary == "hard":
            return Flat(flatten(self.matrices()), self.layout)
        return Flat(self.factors(flat=True), self.layout)

    @property
    def state_parts(self) -> int:
        """How many tensors make up a state."""
        return len(self.recurrence.cell.state)

    def run(
        self, x: Tensor, state: State, lengths: Optional[Tensor], need_output: bool
    ) -> Tuple[Tensor, State]:
        """The recurrence from this state on."""
        arguments = (x, self.flat_factors(), self.offsets(), state, lengths, self.weight)
        settings = (self.checkpoint_every, self.backend, self.activation)
        return self.recurrence(*arguments, need_output, *settings)

    def available_backends(self) -> List[str]:
        """What can run the recurrence where the parameters are, fastest first."""
        return self.recurrence.available(self.weight.device, self.weight.dtype, self.complex)

    @without_autocast
    def forward(
        self,
        x: Tensor,  # shape: (T, B, input_size), or (T, B) of integers below input_size
        state: Optional[State] = None,
        lengths: Optional[Tensor] = None,  # shape: (B,)
        need_output: bool = True,
    ) -> Tuple[Tensor, State]:  # shape: (T, B, output_size)
        """The output of every step, and the last state; arguments as for `RecurrentStack`."""
        state = self.initial_state(x.shape[1]) if state is None else self.given_state(state)
        output, last = self.run(x, state, lengths, need_output)
        if self.check_finite and not all(bool(part.isfinite().all()) for part in last):
            self._report_step(x, state, lengths)
        return output, last

    @torch.no_grad()
    @without_autocast
    def copied_weights(self) -> Weights:
        """Copies of the parameters in the type of computation, for a stream."""
        dtype = compute_type(self.weight.dtype)
        bias, weight = (t.to(dtype, copy=True) for t in (self.offsets(), self.weight))
        return Weights(self.flat_factors(), bias.contiguous(), weight.contiguous())

    @torch.no_grad()
    def _report_step(self, x: Tensor, state: State, lengths: Optional[Tensor]) -> None:
        """Run again to find the first step that is not finite; later ones stay so. An LSTM's c may
        be infinite while its output is finite."""
        output, _ = self.run(x, state, lengths, need_output=True)
        steps = (~output.isfinite()).flatten(1).any(1).nonzero().flatten().tolist()
        name = type(self).__name__.removesuffix("Layer")
        when = f"after step {steps[0]}" if steps else "at the end"
        raise RuntimeError(f"{name}: the state holds a NaN or an infinity {when}")

    @without_autocast
    def unitary_penalty(self) -> Tensor:
        """Σ_f ‖W_fᴴ W_f − I‖_F², a scalar; 0 unless `unitary` is "soft"."""
        if self.unitary != "soft":
            return self.factors()[0].real.new_zeros(())
        return unitary_penalty(self.matrices())

    @without_autocast
    def unitary_deviation(self) -> Tensor:
        """max_f ‖W_fᴴ W_f − I‖_F, a scalar."""
        return unitary_deviation(self.matrices())

    @without_autocast
    def penalty_and_deviation(self) -> Tuple[Tensor, Tensor]:
        """`unitary_penalty()`, and `unitary_deviation()` without a gradient, from one product
        W_fᴴ W_f for both."""
        errors = gram_errors(self.matrices())
        penalty = penalty_of(errors) if self.unitary == "soft" else errors[0].new_zeros(())
        return penalty, deviation_of([error.detach() for error in errors])

    def singular_values(self) -> Tensor:
        """The singular values of each product, largest first, shape (products, N)."""
        return torch.stack([singular_values(product) for product in self.products()])

    @torch.no_grad()
    @without_autocast
    def singular_range(self) -> Tensor:  # shape: (2,)
        """The smallest and the largest singular value of all products."""
        ranges = torch.stack([singular_range(product) for product in self.products()])
        return torch.stack([ranges[:, 0].min(), ranges[:, 1].max()])

    def recurrent_parameters(self) -> int:
        """How many real numbers describe the products: 8·log2 N for one of 2x2 complex factors."""
        return sum(factor.numel() for factor in self.factors)

    def extra_repr(self) -> str:
        kind = "complex" if self.complex else "real"
        return (
            f"{self.input_size}, {self.hidden_size}, factors={format_factors(self.factor_sizes)!r},"
            f" {kind}, unitary={self.unitary!r},"
            f" recurrent_parameters={self.recurrent_parameters()}"
        )
