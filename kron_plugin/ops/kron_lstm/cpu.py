"""The fused CPU kernel (cpu.cpp) as differentiable operators of torch.

The two operators `kron_plugin::kron_lstm_cpu` and `..._backward` take the factors of all gates as
one vector, so that their gradient is one too.
"""

import ctypes
from pathlib import Path
from typing import List, Optional, Sequence, Tuple

import torch
from torch import Tensor

from ..backends import Problem
from ..kron.flat import flatten
from ..native import kernel
from ..native.solve import inverses, solve

_SOURCE = Path(__file__).with_name("cpu.cpp")

# With more features than this, projecting them first with a matrix product is faster.
MAX_FEATURES = 8


class _Call(ctypes.Structure):
    """`struct Call` of cpu_step.h."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("threads", "steps", "batch", "size", "inputs")),
        *((name, ctypes.c_int64) for name in ("every", "token_rows")),
        *((name, ctypes.c_void_p) for name in ("counts", "shapes", "factors", "x", "tokens")),
        *((name, ctypes.c_void_p) for name in ("weight", "bias", "h0", "c0", "lengths")),
        *((name, ctypes.c_void_p) for name in ("outputs", "kept", "h_n", "c_n", "shortcut")),
        *((name, ctypes.c_void_p) for name in ("d_outputs", "d_h_n", "d_c_n", "d_x", "d_weight")),
        *((name, ctypes.c_void_p) for name in ("d_factors", "d_bias", "d_h0", "d_c0")),
    ]


def obstacle(problem: Problem) -> Optional[str]:
    """What keeps this backend from serving, or None."""
    return kernel.obstacle(_SOURCE, problem)


def kron_lstm_cpu(
    x: Tensor,
    factors: Sequence[Sequence[Tensor]],
    bias: Tensor,
    state: Tuple[Tensor, Tensor],
    lengths: Optional[Tensor],
    weight: Optional[Tensor],
    need_output: bool,
    checkpoint_every: int,
) -> Tuple[Optional[Tensor], Tuple[Tensor, Tensor]]:
    """`kron_lstm` with arguments as it describes and has checked them.

    Deterministic for a given number of threads. The gradients of factors are exact for any factors;
    gates whose factors are square and well-conditioned take the shorter way that
    kron_rnn/cpu.cpp derives.
    """
    if weight is not None and x.is_floating_point() and weight.shape[0] > MAX_FEATURES:
        x, weight = x @ weight, None
    flat = flatten([w for gate in factors for w in gate]).to(state[0].dtype)
    shapes = [size for gate in factors for w in gate for size in w.shape]
    counts = [len(gate) for gate in factors]
    tensors = (x, flat, bias, *state, weight)
    keep = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    outputs, _, h_n, c_n = _operator(
        *tensors, lengths, shapes, counts, need_output, checkpoint_every, keep
    )
    return (outputs if need_output else None), (h_n, c_n)


def _run(function, x, factors, bias, weight, lengths, shapes, counts, every, **others) -> None:
    """One of the kernel's two passes; `others` are the fields that are not in both."""
    kernel.run(
        _SOURCE,
        function,
        _Call(),
        factors.dtype,
        False,
        **kernel.input_fields("kron_lstm", x, weight, lengths),
        threads=kernel.thread_count(),
        size=bias.shape[0] // 4,
        every=every,
        counts=torch.tensor(counts),
        shapes=torch.tensor(shapes),
        factors=factors,
        bias=bias,
        **others,
    )


def _forward(
    x: Tensor,  # shape: (T, B, 4N), (T, B, I) or (T, B) of integers
    factors: Tensor,  # shape: (Σ P_f Q_f,) over all gates
    bias: Tensor,  # shape: (4N,)
    h0: Tensor,  # shape: (B, N)
    c0: Tensor,  # shape: (B, N)
    weight: Optional[Tensor],  # shape: (I, 4N)
    lengths: Optional[Tensor],  # shape: (B,)
    shapes: List[int],  # P_0, Q_0, P_1, … of gate i, then of f, g and o
    counts: List[int],  # how many factors each gate has
    need_output: bool,
    every: int,
    keep: bool,
) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
    """Outputs (T, B, N), what the backward pass keeps, and the last h and c (B, N)."""
    results = _allocate(x, h0, need_output, every, keep)
    arrays = dict(zip(("outputs", "kept", "h_n", "c_n"), results, strict=True))
    problem = (x, factors, bias, weight, lengths, shapes, counts, every)
    _run("kron_lstm_forward", *problem, h0=h0, c0=c0, **arrays)
    return results


def _forward_fake(
    x, factors, bias, h0, c0, weight, lengths, shapes, counts, need_output, every, keep
):
    return _allocate(x, h0, need_output, every, keep)


def _allocate(x: Tensor, h0: Tensor, need_output: bool, every: int, keep: bool):
    """Arrays for the results of `_forward`; those not asked for are empty."""
    steps = x.shape[0]
    outputs = h0.new_empty((steps, *h0.shape) if need_output else (0,))
    kept = h0.new_empty((-(-steps // every), 2, *h0.shape) if keep else (0,))
    return outputs, kept, h0.new_empty(h0.shape), h0.new_empty(h0.shape)


def _backward(
    d_outputs: Optional[Tensor],
    d_h_n: Optional[Tensor],
    d_c_n: Optional[Tensor],
    kept: Tensor,
    x: Tensor,
    factors: Tensor,
    bias: Tensor,
    weight: Optional[Tensor],
    lengths: Optional[Tensor],
    shapes: List[int],
    counts: List[int],
    every: int,
    need_d_x: bool,
) -> Tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, factors, bias, h0, c0 and weight; empty for an x or weight without one."""
    results = _allocate_gradients(x, factors, bias, weight, need_d_x)
    d_x, d_factors, d_bias, d_h0, d_c0, d_weight = results
    gates = _split(shapes, counts)
    entries = [sum(p * q for p, q in zip(g[::2], g[1::2], strict=True)) for g in gates]
    found = [inverses(w, g, False) for w, g in zip(factors.split(entries), gates, strict=True)]
    sums = torch.empty(factors.shape, dtype=torch.float64)
    _run(
        "kron_lstm_backward",
        *(x, factors, bias, weight, lengths, shapes, counts, every),
        shortcut=torch.tensor([int(inverse is not None) for inverse in found]),
        kept=kept,
        d_outputs=d_outputs,
        d_h_n=d_h_n,
        d_c_n=d_c_n,
        d_x=d_x,
        d_weight=d_weight,
        d_factors=sums,
        d_bias=d_bias,
        d_h0=d_h0,
        d_c0=d_c0,
    )
    for part, inverse, gate in zip(sums.split(entries), found, gates, strict=True):
        if inverse is not None:
            part.copy_(solve(part, inverse, gate, False))
    d_factors.copy_(sums)
    return results


def _backward_fake(
    d_outputs, d_h_n, d_c_n, kept, x, factors, bias, weight, lengths, shapes, counts, every,
    need_d_x,
):  # fmt: skip
    return _allocate_gradients(x, factors, bias, weight, need_d_x)


def _allocate_gradients(x, factors, bias, weight, need_d_x):
    def like(tensor: Optional[Tensor], needed: bool) -> Tensor:
        return factors.new_empty(tensor.shape if needed else (0,))

    d_h0, d_c0 = (factors.new_empty((x.shape[1], bias.shape[0] // 4)) for _ in range(2))
    shared = (like(x, need_d_x), like(factors, True), like(bias, True))
    return *shared, d_h0, d_c0, like(weight, weight is not None)


def _split(shapes: List[int], counts: List[int]) -> List[List[int]]:
    """The shapes of each gate's factors."""
    ends = [2 * sum(counts[: k + 1]) for k in range(len(counts))]
    return [shapes[end - 2 * count : end] for end, count in zip(ends, counts, strict=True)]


def _setup_context(ctx, inputs, output) -> None:
    x, factors, bias, _, _, weight, lengths, *settings = inputs
    shapes, counts, _, every, _ = settings
    ctx.settings = (shapes, counts, every)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[1], x, factors, bias, weight, lengths)


def _differentiate(ctx, d_outputs, d_kept, d_h_n, d_c_n):
    if d_outputs is not None and d_outputs.numel() == 0:
        d_outputs = None
    needs_x, *_, needs_weight = ctx.needs_input_grad[:6]
    gradients = _backward_operator(
        d_outputs, d_h_n, d_c_n, *ctx.saved_tensors, *ctx.settings, needs_x
    )
    d_x, d_factors, d_bias, d_h0, d_c0, d_weight = gradients
    d_x, d_weight = d_x if needs_x else None, d_weight if needs_weight else None
    return d_x, d_factors, d_bias, d_h0, d_c0, d_weight, *[None] * 6


def _refuse(ctx, *gradients):
    raise RuntimeError(
        "the CPU kernel of kron_lstm has no second derivative; use backend='reference' for one"
    )


def _register(name, function, fake, backward, setup_context=lambda ctx, inputs, output: None):
    operator = torch.library.custom_op(f"kron_plugin::{name}", function, mutates_args=())
    operator.register_fake(fake)
    operator.register_autograd(backward, setup_context=setup_context)
    return operator


_backward_operator = _register("kron_lstm_cpu_backward", _backward, _backward_fake, _refuse)
_operator = _register("kron_lstm_cpu", _forward, _forward_fake, _differentiate, _setup_context)
