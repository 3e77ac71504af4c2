"""Any recurrence by the CUDA kernels: one launch per pass, then sums for all steps at once.

The backward sweep computes delta_t, the gradient of W_k h_{t-1}, for all steps. The gradients of
factors and weights are sums of it over steps and batch, in no order of time. If a cell needs W_k h
in the backward pass, it is computed again for many steps at once (cuda/README.md).
"""

from typing import Any, Callable, Dict, List, Optional, Tuple

import torch
from torch import Tensor

from ..backends import compute_type
from ..cuda_geometry import adjoint_shapes, arranged, geometry
from ..cuda_kernels import FORMS, STORED, Kernels, aligned, kernels_for, launch
from ..inputs import input_gradient
from ..kron.cuda import factor_gradients, product
from .arguments import Arguments
from .cell import Cell
from .operator import define

# The backward sweep takes as many steps at a time as have gradients that fit in this, not counting
# gradients that are a result. The limit is high: each part costs Python some 20 calls of torch.
SEGMENT_BYTES = 1 << 28


def backend(cell: Cell) -> Callable:
    """The recurrence by a cell's kernels."""

    def forward(given, outputs, kept, last) -> None:
        call = _Launches(cell, given)
        state = aligned(given.state.to(call.real))
        rows, befores = outputs, None
        if call.keeps_outputs and kept.numel():
            rows = kept[1:, 0]
        elif given.every == 1:
            befores = kept
        ends = kept if kept.numel() and given.every > 1 else None
        if ends is not None:
            ends[0].copy_(state)
        length = given.steps if ends is None else given.every
        for i, first in enumerate(range(0, given.steps, length)):
            end = min(first + length, given.steps)
            after = torch.empty_like(state) if ends is None else ends[i + 1]
            parts = (_part(rows, first, end), _part(befores, first, end))
            call.forward(first, end, state, after, *parts)
            state = after
        last.copy_(state)

    def backward(
        given, d_outputs, d_last, outputs, kept, d_x, d_factors, d_bias, d_state, d_weight
    ) -> None:
        call = _Launches(cell, given)
        outputs, kept = aligned(outputs), aligned(kept)  # hooks may have stored them elsewhere
        d_outputs = None if d_outputs is None else aligned(d_outputs)
        d_later = None if d_last is None else aligned(d_last.to(call.real))
        length = call.segment_length(d_x)
        sums: List[Optional[Tensor]] = [None, None, None]
        for first in reversed(range(0, given.steps, length)):
            end = min(first + length, given.steps)
            initial, rows = call.history(first, end, outputs, kept)
            d_x_here = d_x[first:end]
            delta, d_input = call.new_deltas(end - first, d_x_here)
            upstream = _part(d_outputs, first, end)
            d_later, d_bias_here = call.backward(first, rows, upstream, d_later, delta, d_input)
            d_factors_here = call.factor_gradients(delta, initial, rows)
            d_weight_here = input_gradient(given.x[first:end], given.weight, d_input, d_x_here)
            here = (d_factors_here, d_bias_here, d_weight_here)
            sums = [
                a if b is None else b if a is None else a + b
                for a, b in zip(sums, here, strict=True)
            ]
        for result, total in zip(
            (d_factors, d_bias, d_weight, d_state), (*sums, d_later), strict=True
        ):
            if total is not None:
                result.copy_(total)

    return define(cell, "cuda", forward, backward)


def _part(rows: Optional[Tensor], first: int, end: int) -> Optional[Tensor]:
    return None if rows is None or not rows.numel() else rows[first:end]


class _Launches:
    """One call's arguments, in the form for launches.

    The history of some steps is their outputs (t, B, W) for a cell with `from_output`, and the
    states (t, S, B, W) before them for any other.
    """

    def __init__(self, cell: Cell, given: Arguments) -> None:
        self.cell, self.given = cell, given
        self.real = compute_type(given.state.dtype)
        self.device = given.state.device
        self.keeps_outputs = cell.from_output and given.every == 1
        self.products = [list(shapes) for shapes in given.layout.products]
        self.factors = given.layout.by_product(given.factors)
        activation = list(cell.activations).index(given.activation)
        form = "tokens" if given.is_tokens else "dense" if given.weight is None else "features"
        self.kernels = Kernels("stages", STORED[given.state.dtype], 1, cell=cell.name)
        if cell.has_butterfly:
            how = (given.is_complex, FORMS.index(form), activation)
            self.kernels = kernels_for(given.shapes, given.state.dtype, *how)
        # `stages` write delta in the type that they compute with.
        by_butterfly = self.kernels.kind == "butterfly"
        self.delta_type = given.state.dtype if by_butterfly else self.real
        self.vectors = len(cell.state) + 2 + (cell.products if cell.products > 1 else 0)
        self.x = aligned(given.x.to(torch.int64) if given.is_tokens else given.x)
        self.fields: Dict[str, Any] = {
            "batch": given.batch,
            "inputs": given.inputs,
            "symbols": given.symbols,
            "activation": activation,
            "weight": None if given.weight is None else aligned(given.weight),
            "bias": aligned(given.bias.to(self.real)),
            "lengths": None if given.lengths is None else given.lengths.long().contiguous(),
        }

    def forward(
        self,
        first: int,
        end: int,
        state: Tensor,  # shape: (S, B, W)
        last: Tensor,  # shape: (S, B, W)
        outputs: Optional[Tensor],  # shape: (end - first, B, W)
        befores: Optional[Tensor],  # shape: (end - first, S, B, W)
    ) -> None:
        """Fills the state after steps `first` to `end`, outputs and the states before, if given."""
        written = {"initial": state, "outputs": outputs, "kept": befores, "last": last}
        self._launch("forward", first, end - first, **written)

    def backward(
        self,
        first: int,
        rows: Tensor,  # of the history
        d_outputs: Optional[Tensor],  # shape: (t, B, W)
        d_last: Optional[Tensor],  # shape: (S, B, W)
        delta: Tensor,
        d_input: Tensor,
    ) -> Tuple[Tensor, Tensor]:
        """Fills delta and d_input; returns the gradients of the state before and of the bias."""
        given = self.given
        shape = (len(self.cell.state), given.batch, given.width)
        d_state = torch.empty(shape, dtype=self.real, device=self.device)
        known: Dict[str, Optional[Tensor]] = {"outputs": rows}
        d_bias = None
        if self.cell.from_output:
            d_bias = d_state.new_empty(given.batch, given.bias.numel())
        else:
            known = {"kept": rows, "recurrent": self._recurrent(rows[:, 0])}
        known |= {"d_outputs": d_outputs, "d_last": d_last}
        written = {"delta": delta, "d_input": d_input, "d_bias": d_bias, "d_initial": d_state}
        self._launch("backward", first, rows.shape[0], adjoint=1, **known, **written)
        if d_bias is not None:
            return d_state, d_bias.sum(0, dtype=torch.float64)
        # A gate's first bias is added to u, a further one to the product of a last gate.
        further = (self.cell.products - self.cell.biases) * given.width or delta.shape[2]
        parts = (d_input, delta[..., further:])
        return d_state, torch.cat([part.sum((0, 1), dtype=torch.float64) for part in parts])

    def _launch(self, function: str, first: int, steps: int, **fields: Any) -> None:
        adjoint = function == "backward"
        parts = zip(self.factors, self.products, strict=True)
        factors = [arranged(self.kernels, w, shapes, adjoint) for w, shapes in parts]
        products = [adjoint_shapes(w) if adjoint else w for w in self.products]
        batch = self.given.batch
        cut = geometry(self.kernels, function, self.device, products, batch, self.vectors)
        fields |= {"x": self.x[first], "first": first, "steps": steps}
        fields["factors"] = torch.cat(factors) if len(factors) > 1 else factors[0]
        launch(self.kernels, function, self.device, cut, **self.fields, **fields)

    def _recurrent(self, h: Tensor) -> Tensor:  # shapes: (t, B, W), (t·B, K·W)
        h = h.reshape(-1, self.given.width)
        parts = zip(self.factors, self.products, strict=True)
        return torch.cat([product(h, w, shapes, False, adjoint=False) for w, shapes in parts], 1)

    def new_deltas(self, steps: int, d_x: Tensor) -> Tuple[Tensor, Tensor]:
        """Arrays for the gradients of W_k h and of u_t, shape (t, B, K·W). The latter is d_x itself
        if that is the gradient of u_t."""
        given = self.given
        shape = (steps, given.batch, self.cell.products * given.width)
        d_input = d_x if self._fills(d_x) else d_x.new_empty(shape, dtype=self.delta_type)
        return (torch.empty_like(d_input) if self.cell.splits else d_input), d_input

    def _fills(self, d_x: Tensor) -> bool:
        """Whether the gradient of u_t is written to d_x."""
        return bool(self.given.weight is None and d_x.numel()) and d_x.dtype == self.delta_type

    def segment_length(self, d_x: Tensor) -> int:
        """How many steps the backward sweep takes at a time."""
        if self.given.every > 1:
            return self.given.every
        arrays = 1 + self.cell.splits - self._fills(d_x) + 2 * (not self.cell.from_output)
        numbers = arrays * self.given.batch * self.cell.products * self.given.width
        row = numbers * self.delta_type.itemsize
        return SEGMENT_BYTES // row or 1 if row else self.given.steps

    def history(
        self, first: int, end: int, outputs: Tensor, kept: Tensor
    ) -> Tuple[Optional[Tensor], Tensor]:
        """The state (B, W) before outputs, and the history of steps `first` to `end`, made again
        if it was not kept."""
        if self.keeps_outputs:
            # By axes, because a batch may be empty.
            rows = kept[1:, 0] if kept.dim() > 1 else outputs
            initial = self.given.state[0] if first == 0 else rows[first - 1]
            return aligned(initial.to(self.real)), rows[first:end]
        if self.given.every == 1:
            return None, kept[first:end]
        state = kept[first // self.given.every]
        shape = state.shape[1:] if self.cell.from_output else state.shape
        dtype = self.given.state.dtype if self.cell.from_output else self.real
        rows = state.new_empty(end - first, *shape, dtype=dtype)
        written = (rows, None) if self.cell.from_output else (None, rows)
        self.forward(first, end, state, torch.empty_like(state), *written)
        return state[0], rows

    def factor_gradients(self, delta: Tensor, initial: Optional[Tensor], rows: Tensor) -> Tensor:
        """The gradients of all products' factors, one after the other, in double precision."""
        given, width = self.given, self.given.width
        if self.cell.from_output:
            pair = [t.reshape(-1, width) for t in (delta, rows)]
            return factor_gradients(
                self.kernels, pair[0], initial, pair[1], given.factors, given.shapes
            )
        h, sums = rows[:, 0].reshape(-1, width), []
        deltas = delta.chunk(self.cell.products, 2)
        for d, w, shapes in zip(deltas, self.factors, self.products, strict=True):
            kernels = kernels_for(shapes, self.real, False)
            sums.append(factor_gradients(kernels, d.reshape(-1, width), None, h, w, shapes))
        return torch.cat(sums)
