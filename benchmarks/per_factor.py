"""The recurrence with one CUDA launch for each factor of each step: a peer, for gpu.py alone."""

from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kron_plugin.ops.cuda_kernels import current_stream

THREADS = 256


@cache
def kernels():
    import cupy

    source = Path(__file__).with_suffix(".cu").read_text(encoding="utf-8")
    module = cupy.RawModule(code=source, options=("--std=c++17",))
    names = ("stage_forward", "stage_backward", "activation_forward", "activation_backward")
    return {name: module.get_function(name) for name in names}


class PerFactor(torch.autograd.Function):
    """All states of h_t = modReLU(W h_{t-1} + u_t), W of complex 2x2 factors.

    x: (T, B, 2N), the projected input u; factors: (F, 2, 2, 2), the last axis (re, im); bias: (N,);
    h0: (B, 2N). All float32 on one GPU.
    """

    @staticmethod
    def forward(ctx, x: Tensor, factors: Tensor, bias: Tensor, h0: Tensor) -> Tensor:
        steps, count = x.shape[0], factors.shape[0]
        inputs = x.new_empty(steps, count, *h0.shape)  # inputs of each stage
        states = x.new_empty(steps, *h0.shape)
        z, h = torch.empty_like(h0), h0
        for t in range(steps):
            inputs[t, 0].copy_(h)
            for f in range(count):
                to = inputs[t, f + 1] if f + 1 < count else z
                _launch("stage_forward", h0, 2, inputs[t, f], factors[f], to, _inner(factors, f))
            _launch("activation_forward", h0, 1, z, x[t], bias, states[t])
            h = states[t]
        ctx.save_for_backward(factors, bias, inputs, states)
        return states

    @staticmethod
    def backward(ctx, outside: Tensor):
        factors, bias, inputs, states = ctx.saved_tensors
        outside = outside.contiguous()
        d_x, d_factors = torch.empty_like(states), torch.zeros_like(factors)
        d_bias, g = torch.zeros_like(bias), torch.zeros_like(states[0])
        buffers = (torch.empty_like(g), torch.empty_like(g))
        for t in reversed(range(states.shape[0])):
            _launch("activation_backward", g, 1, states[t], bias, g, outside[t], d_x[t], d_bias)
            g = d_x[t]
            for f in reversed(range(factors.shape[0])):
                to = buffers[f % 2]
                _launch(
                    *("stage_backward", g, 2, inputs[t, f], factors[f], g, to, d_factors[f]),
                    _inner(factors, f),
                )
                g = to
        return d_x, d_factors, d_bias, g


def _inner(factors: Tensor, f: int) -> int:
    """Elements below the digit of factor f."""
    return 1 << (factors.shape[0] - 1 - f)


def _launch(name: str, like: Tensor, per_thread: int, *arguments) -> None:
    """A kernel over rows of the shape of `like`: tensors, then the size N, then numbers."""
    batch, size = like.shape[0], like.shape[1] // 2
    pointers = [a.data_ptr() for a in arguments if isinstance(a, Tensor)]
    numbers = [np.int32(a) for a in (size, *arguments) if not isinstance(a, Tensor)]
    grid = (-(-size // per_thread // THREADS), batch)
    with current_stream(like.device):
        kernels()[name](grid, (THREADS,), (*pointers, *numbers))
