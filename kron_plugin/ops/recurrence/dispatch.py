"""The backends of a recurrence, and the one place where a user's arguments are checked."""

from typing import List, Optional, Sequence, Tuple, Union

import torch
from torch import Tensor

from .. import checks, inputs
from ..backends import Backend, Backends, Problem
from ..cuda_kernels import obstacle as cuda_obstacle
from ..kron.flat import Flat, Layout, flatten, shapes_of
from . import cpu, cuda
from .arguments import check, of_gate
from .cell import Cell, State
from .reference import reference
from .stream import KernelStream, StepStream, Weights


class Recurrence:
    """A cell run over a sequence by the fastest backend that can serve."""

    def __init__(self, cell: Cell) -> None:
        self.cell = cell
        self.backends = Backends(
            cell.operation,
            {
                "cuda": Backend("cuda", cuda_obstacle, cuda.backend(cell)),
                "cpu": Backend("cpu", cpu.obstacle(cell), inputs.in_single(cpu.backend(cell))),
                "reference": Backend(None, lambda problem: None, inputs.in_single(reference(cell))),
            },
        )

    def available(
        self, device: Union[str, torch.device], dtype: torch.dtype, is_complex: bool
    ) -> List[str]:
        """The backends that can serve here, fastest first. May compile one to find out."""
        return self.backends.available(Problem(torch.device(device), dtype, is_complex))

    def __call__(
        self,
        x: Tensor,  # shape: (T, B, K·W); with weight: (T, B, I), or (T, B) of integers
        factors: Union[Flat, Sequence[Sequence[Tensor]]],  # shape: (P_f, Q_f), for each product
        bias: Tensor,
        state: State,
        lengths: Optional[Tensor],  # shape: (B,)
        weight: Optional[Tensor],  # shape: (I, K·W)
        need_output: bool,
        checkpoint_every: int,
        backend: str,
        activation: str = "",
    ) -> Tuple[Tensor, State]:
        """The outputs, shape (T, B, W), and the last state; arguments as of `kron_rnn`.

        Raises:
            ValueError: sizes or types do not fit together; the message names the argument.
            RuntimeError: the named backend cannot serve.
        """
        state = tuple(state)
        parts, layout = self._parts(factors)

        def check_all(cell: Cell) -> None:
            check(cell, x, layout, bias, state, weight, activation)
            checks.check_factors(cell.operation, parts, state[0])
            message = "checkpoint_every={} must be at least 1"
            checks.require(cell.operation, checkpoint_every >= 1, message, checkpoint_every)

        tensors = (x, *parts, bias, weight, *state)
        checks.once(check_all, self.cell, tensors, (layout, activation, checkpoint_every))
        lengths = checks.checked_lengths(self.cell.operation, lengths, x)
        problem = Problem(state[0].device, state[0].dtype, layout.is_complex)
        settings = (activation, need_output, checkpoint_every)
        run = self.backends.run(backend, problem)
        numbers = factors.numbers if isinstance(factors, Flat) else flatten(parts)
        return run(x, numbers, layout, bias, state, lengths, weight, *settings)

    def stream(
        self, layers: Sequence[Weights], state: Tensor, backend: str, activation: str
    ) -> Union[KernelStream, StepStream]:
        """Layers upon each other that begin in `state` and read a step a call.

        Raises:
            RuntimeError: the named backend cannot serve.
        """
        problem = Problem(state.device, state.dtype, layers[0].factors.layout.is_complex)
        if self.backends.choose(backend, problem) == "cpu":
            return KernelStream(self.cell, layers, activation, state)

        def run(x: Tensor, layer: Weights, before: State) -> State:
            tensors = (x, layer.factors, layer.bias, before, None, layer.weight)
            return self(*tensors, False, 1, backend, activation)[1]

        return StepStream(run, layers, state)

    def _parts(
        self, factors: Union[Flat, Sequence[Sequence[Tensor]]]
    ) -> Tuple[List[Tensor], Layout]:
        """The tensors that make up all factors, and their layout."""
        if isinstance(factors, Flat):
            return [factors.numbers], factors.layout
        products = [list(product) for product in factors]
        self._check_factors(products)
        parts = [w for product in products for w in product]
        counts = tuple(len(product) for product in products)
        return parts, Layout(shapes_of(parts), counts, parts[0].is_complex())

    def _check_factors(self, factors: Sequence[Sequence[Tensor]]) -> None:
        def require(condition: bool, message: str, *values) -> None:
            checks.require(self.cell.operation, condition, message, *values)

        count = self.cell.products
        require(len(factors) == count, "factors has {} gates, expected {}", len(factors), count)
        for gate, product in zip(self.cell.gates or [None], factors, strict=True):
            real = not (self.cell.is_real and any(w.is_complex() for w in product))
            require(real, "factors{} must be real matrices", of_gate(gate))
            fit = bool(product) and all(w.dim() == 2 and w.numel() for w in product)
            message = "factors{} must be matrices, of at least one row and column"
            require(fit, message, of_gate(gate))
            alike = all(w.is_complex() == factors[0][0].is_complex() for w in product)
            require(alike, "factors must be all real or all complex")
