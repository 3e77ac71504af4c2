"""The LSTM's recurrence by the CUDA kernels.

The forward pass is one launch. Backwards, the states before all steps are known, so that the gates'
pre-activations z are made again by products without any order in time; a second launch sweeps back
over them and finds delta = dL/dz; and all sums over steps and batch follow from delta.
"""

from typing import Optional, Tuple

import torch
from torch import Tensor

from ..backends import compute_type
from ..cuda_kernels import (
    STORED,
    Kernels,
    adjoint_shapes,
    aligned,
    arranged,
    kernels_for,
    launch,
    lstm_geometry,
)
from ..inputs import input_gradient, project
from ..kron.cuda import factor_gradients, product
from ..sums import plus, put
from .operator import define, entries, split_gates

# As many steps are taken back at a time as have pre-activations that fit in this.
SEGMENT_BYTES = 1 << 26


class _Recurrence:
    """The arguments of one call that its launches have in common."""

    def __init__(self, x, factors, bias, h0, weight, lengths, shapes, counts) -> None:
        self.real = compute_type(h0.dtype)
        self.kernels = Kernels("lstm", STORED[h0.dtype], 1)
        self.device, self.steps = h0.device, x.shape[0]
        self.batch, self.size = h0.shape
        self.gates = split_gates(shapes, counts)
        self.factors = factors.split(entries(self.gates))
        tokens = weight is not None and not x.is_floating_point()
        self.x = aligned(x.to(torch.int64) if tokens else x)
        self.weight = None if weight is None else aligned(weight)
        self.bias = aligned(bias.to(self.real))
        self.fields = {
            "batch": self.batch,
            "inputs": 0 if weight is None else -1 if tokens else weight.shape[0],
            "symbols": 0 if weight is None else weight.shape[0],
            "lengths": None if lengths is None else lengths.to(torch.int64).contiguous(),
        }

    def forward(
        self,
        first: int,
        steps: int,
        state: Tuple[Tensor, Tensor],
        outputs: Optional[Tensor],
        kept: Optional[Tensor],
    ) -> Tuple[Tensor, Tensor]:
        """The state after steps `first` to `first + steps`; fills outputs and kept, if given."""
        h_n, c_n = (torch.empty_like(s) for s in state)
        self._launch(
            *("forward", first, steps),
            x=self.x[first],
            weight=self.weight,
            bias=self.bias,
            h0=state[0],
            c0=state[1],
            outputs=outputs,
            kept=kept,
            h_n=h_n,
            c_n=c_n,
        )
        return h_n, c_n

    def backward(
        self,
        first: int,
        kept: Tensor,
        d_outputs: Optional[Tensor],
        d_state: Tuple[Optional[Tensor], Optional[Tensor]],
    ) -> Tuple[Tensor, Tuple[Tensor, Tensor]]:
        """delta of the steps that `kept` has the states before, and the gradients of the first."""
        z = self._gates(first, kept)
        delta = torch.empty_like(z)
        d_h0, d_c0 = (z.new_empty(self.batch, self.size) for _ in range(2))
        self._launch(
            *("backward", first, kept.shape[0]),
            kept=kept,
            z=z,
            d_outputs=d_outputs,
            d_h_n=d_state[0],
            d_c_n=d_state[1],
            delta=delta,
            d_h0=d_h0,
            d_c0=d_c0,
        )
        return delta, (d_h0, d_c0)

    def _gates(self, first: int, kept: Tensor) -> Tensor:  # shape: (t, B, 4N)
        """z = W h + u + b from the states before the steps."""
        h = kept[:, 0].reshape(-1, self.size)
        parts = [
            product(h, w, gate, is_complex=False, adjoint=False)
            for w, gate in zip(self.factors, self.gates, strict=True)
        ]
        x, weight = self.x[first : first + kept.shape[0]], self.weight
        if weight is not None:  # in the type that the forward pass computed with
            weight = weight.to(self.real)
            x = x.to(self.real) if x.is_floating_point() else x.clamp(0, weight.shape[0] - 1)
        u = project(x, weight).to(self.real)
        return torch.cat(parts, 1).view_as(u) + u + self.bias

    def factor_gradients(self, delta: Tensor, kept: Tensor) -> Tensor:
        """Those of all gates' factors, one after the other, in double precision."""
        h = kept[:, 0].reshape(-1, self.size)
        parts = []
        for d, w, gate in zip(delta.chunk(4, 2), self.factors, self.gates, strict=True):
            kernels = kernels_for(gate, self.real, False)
            rows = d.reshape(-1, self.size)
            parts.append(factor_gradients(kernels, rows, None, h, w, gate))
        return torch.cat(parts)

    def _launch(self, function: str, first: int, steps: int, **fields) -> None:
        adjoint = function == "backward"
        gates = [adjoint_shapes(gate) if adjoint else gate for gate in self.gates]
        as_stages = Kernels("stages", self.kernels.stored, 1)
        parts = zip(self.factors, self.gates, strict=True)
        factors = torch.cat([arranged(as_stages, w, gate, adjoint) for w, gate in parts])
        cut = lstm_geometry(self.kernels, self.device, gates, self.batch)
        fields = {**self.fields, **fields, "factors": factors, "first": first, "steps": steps}
        launch(self.kernels, function, self.device, cut, **fields)


def _forward(
    x, factors, bias, h0, c0, weight, lengths, shapes, counts, every, _threads,
    outputs, kept, h_n, c_n,
) -> None:  # fmt: skip
    call = _Recurrence(x, factors, bias, h0, weight, lengths, shapes, counts)
    state = tuple(aligned(s.to(call.real)) for s in (h0, c0))
    in_segments = every > 1 and kept.numel() > 0
    length = every if in_segments else call.steps
    for first in range(0, call.steps, length):
        steps = min(length, call.steps - first)
        if in_segments:
            kept[first // every].copy_(torch.stack(state))
        written = kept if kept.numel() and not in_segments else None
        rows = outputs[first : first + steps] if outputs.numel() else None
        state = call.forward(first, steps, state, rows, written)
    h_n.copy_(state[0])
    c_n.copy_(state[1])


def _backward(
    d_outputs, d_h_n, d_c_n, kept, x, factors, bias, h0, c0, weight, lengths, shapes, counts, every,
    _threads, d_x, d_factors, d_bias, d_h0, d_c0, d_weight,
) -> None:  # fmt: skip
    call = _Recurrence(x, factors, bias, h0, weight, lengths, shapes, counts)
    d_outputs = None if d_outputs is None else aligned(d_outputs)
    d_state = tuple(None if d is None else aligned(d.to(call.real)) for d in (d_h_n, d_c_n))
    row = call.batch * 4 * call.size * kept.element_size()
    length = every if every > 1 else max(1, SEGMENT_BYTES // max(1, row))
    sums = (None, None, None)
    for first in reversed(range(0, call.steps, length)):
        end = min(first + length, call.steps)
        before = _states(call, first, end, kept, every)
        outside = None if d_outputs is None else d_outputs[first:end]
        delta, d_state = call.backward(first, before, outside, d_state)
        d_factors_here = call.factor_gradients(delta, before)
        d_bias_here = delta.sum((0, 1), dtype=torch.float64)
        d_weight_here = input_gradient(x[first:end], weight, delta, d_x[first:end])
        sums = plus(sums, (d_factors_here, d_bias_here, d_weight_here))
    put((d_factors, d_bias, d_weight, d_h0, d_c0), (*sums, *d_state))


def _states(
    call: _Recurrence, first: int, end: int, kept: Tensor, every: int
) -> Tensor:  # shape: (end - first, 2, B, N)
    """h and c before each step from `first` to `end`, made again if not kept."""
    if every == 1:
        return kept[first:end]
    before = kept.new_empty(end - first, *kept.shape[1:])
    call.forward(first, end - first, tuple(kept[first // every]), None, before)
    return before


kron_lstm_cuda = define("cuda", _forward, _backward)
