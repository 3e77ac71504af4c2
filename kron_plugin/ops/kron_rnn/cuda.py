"""The recurrence by the CUDA kernels: one launch a pass, and one for the factors' gradients.

The sweep back finds delta_t = dL/dz_t for all steps. All sums over steps and batch, the gradients
of factors, weights and bias, follow from it without any order in time (cuda/README.md).
"""

from typing import Optional, Tuple

import torch
from torch import Tensor

from ..backends import compute_type
from ..cuda_kernels import (
    FORMS,
    Kernels,
    adjoint_shapes,
    aligned,
    arranged,
    geometry,
    kernels_for,
    launch,
)
from ..inputs import input_gradient
from ..kron.cuda import factor_gradients
from ..sums import plus, put
from .operator import ACTIVATIONS, define

# Where delta is no result itself (the gradient of x given as u is), as many steps of it are made at
# a time as fit in this: each part costs Python some 20 calls of torch.
DELTA_BYTES = 1 << 28


class _Recurrence:
    """The arguments of one call that its launches have in common."""

    def __init__(
        self, x, factors, bias, h0, weight, lengths, shapes, is_complex, activation
    ) -> None:
        self.real = compute_type(h0.dtype)
        self.shapes, self.factors, self.device = shapes, factors, h0.device
        self.steps, self.batch, self.width = x.shape[0], *h0.shape
        self.tokens = weight is not None and not x.is_floating_point()
        self.x = aligned(x.to(torch.int64) if self.tokens else x)
        self.weight = None if weight is None else aligned(weight)
        form = FORMS.index("dense" if weight is None else "tokens" if self.tokens else "features")
        how = (is_complex, form, ACTIVATIONS[activation])
        self.kernels: Kernels = kernels_for(shapes, h0.dtype, *how)
        self.fields = {
            "batch": self.batch,
            "inputs": 0 if weight is None else -1 if self.tokens else weight.shape[0],
            "symbols": 0 if weight is None else weight.shape[0],
            "activation": ACTIVATIONS[activation],
            "weight": self.weight,
            "bias": aligned(bias.to(self.real)),
            "lengths": None if lengths is None else lengths.to(torch.int64).contiguous(),
        }

    def forward(
        self, first: int, steps: int, h0: Tensor, states: Optional[Tensor], last: Tensor
    ) -> None:
        """Steps `first` to `first + steps`, from h0 to last; states are written if given."""
        self._launch(
            "forward",
            first,
            steps,
            x=self.x[first],
            factors=arranged(self.kernels, self.factors, self.shapes, adjoint=False),
            h0=h0,
            states=states,
            last=last,
        )

    def backward(
        self,
        first: int,
        states: Tensor,
        d_states: Optional[Tensor],
        d_last: Optional[Tensor],
        delta: Tensor,
    ) -> Tuple[Tensor, Tensor]:
        """Fills delta; returns the gradients of the state before and, summed, of the bias."""
        d_h0 = torch.empty(self.batch, self.width, dtype=self.real, device=self.device)
        d_bias = d_h0.new_empty(self.batch, self.fields["bias"].numel())
        self._launch(
            "backward",
            first,
            states.shape[0],
            factors=arranged(self.kernels, self.factors, self.shapes, adjoint=True),
            adjoint=1,
            states=states,
            d_states=d_states,
            d_last=d_last,
            delta=delta,
            d_bias=d_bias,
            d_h0=d_h0,
        )
        return d_h0, d_bias.sum(0, dtype=torch.float64)

    def _launch(self, function: str, first: int, steps: int, **fields) -> None:
        shapes = adjoint_shapes(self.shapes) if function == "backward" else self.shapes
        cut = geometry(self.kernels, function, self.device, shapes, self.batch)
        fields = {**self.fields, **fields, "first": first, "steps": steps}
        launch(self.kernels, function, self.device, cut, **fields)


def _forward(
    x, factors, bias, h0, weight, lengths, shapes, is_complex, activation, every, _threads,
    states, kept, last,
) -> None:  # fmt: skip
    call = _Recurrence(x, factors, bias, h0, weight, lengths, shapes, is_complex, activation)
    h = aligned(h0.to(call.real))
    in_segments = every > 1 and kept.numel() > 0
    length = every if in_segments else call.steps
    written = states if states.numel() else kept if kept.numel() and every == 1 else None
    for first in range(0, call.steps, length):
        end = min(first + length, call.steps)
        after = kept[first // every] if in_segments else torch.empty_like(h)
        rows = None if written is None else written[first:end]
        call.forward(first, end - first, h, rows, after)
        h = after
    last.copy_(h)


def _backward(
    d_states, d_last, states, kept, x, factors, bias, h0, weight, lengths, shapes, is_complex,
    activation, every, _threads, d_x, d_factors, d_bias, d_h0, d_weight,
) -> None:  # fmt: skip
    call = _Recurrence(x, factors, bias, h0, weight, lengths, shapes, is_complex, activation)
    d_states = None if d_states is None else aligned(d_states)
    g = None if d_last is None else aligned(d_last.to(call.real))
    delta_is_d_x = weight is None and d_x.numel() > 0
    length = _segment_length(call, h0, every, delta_is_d_x)
    sums = (None, None, None)
    for first in reversed(range(0, call.steps, length)):
        end = min(first + length, call.steps)
        before, segment = _states(call, first, end, h0, states, kept, every)
        delta = d_x[first:end] if delta_is_d_x else torch.empty_like(segment)
        outside = None if d_states is None else d_states[first:end]
        g, d_bias_here = call.backward(first, segment, outside, g, delta)
        rows = [t.reshape(-1, call.width) for t in (delta, segment)]
        d_factors_here = factor_gradients(call.kernels, rows[0], before, rows[1], factors, shapes)
        d_weight_here = input_gradient(x[first:end], weight, delta, d_x[first:end])
        sums = plus(sums, (d_factors_here, d_bias_here, d_weight_here))
    put((d_factors, d_bias, d_weight, d_h0), (*sums, g))


def _segment_length(call: _Recurrence, h0: Tensor, every: int, delta_is_d_x: bool) -> int:
    """How many steps the sweep back takes at a time."""
    if every > 1:
        return every
    if delta_is_d_x:
        return call.steps
    return max(1, DELTA_BYTES // max(1, h0.numel() * h0.element_size()))


def _states(
    call: _Recurrence,
    first: int,
    end: int,
    h0: Tensor,
    states: Tensor,
    kept: Tensor,
    every: int,
) -> Tuple[Tensor, Tensor]:  # shapes: (B, W), (end - first, B, W)
    """The state before step `first`, and those from there to `end`, made again if not kept."""
    initial = aligned(h0.to(call.real))
    if every > 1:
        before = initial if first == 0 else kept[first // every - 1]
        segment = h0.new_empty(end - first, *h0.shape)
        call.forward(first, end - first, before, segment, torch.empty_like(initial))
        return before, segment
    everything = kept if kept.dim() > 1 else states  # by axes: there may be no sequence
    before = initial if first == 0 else everything[first - 1].to(call.real)
    return before, everything[first:end]


kron_rnn_cuda = define("cuda", _forward, _backward)
