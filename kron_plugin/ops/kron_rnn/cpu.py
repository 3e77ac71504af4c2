"""The fused CPU kernel (cpu.cpp) as differentiable operators of torch.

The two operators `kron_plugin::kron_rnn_cpu` and `..._backward` take all factors as one real
vector, so that their gradient is one too.
"""

import ctypes
import os
from functools import cache
from math import prod
from pathlib import Path
from typing import List, Optional, Sequence, Tuple

import torch
from torch import Tensor

from . import compile as compiling

_FOLDER = Path(__file__).parent
_ACTIVATIONS = {"modrelu": 0, "tanh": 1, "identity": 2}

# With more features than this, projecting them first with a matrix product is faster.
MAX_FEATURES = 8

# The largest condition number of a factor, by type, with which its gradient is solved for rather
# than summed stage by stage. The solved one's error, relative to the largest entry, is about 1e-7
# (float32) or 2e-16 (float64) times the condition number: here 3e-6 and 2e-13 at the most, where
# the other way is off by some 1e-6 and 3e-15.
MAX_CONDITION = {torch.float32: 30.0, torch.float64: 1000.0}


class _Call(ctypes.Structure):
    """`struct Call` of cpu_step.h."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("threads", "steps", "batch", "size", "inputs")),
        *((name, ctypes.c_int64) for name in ("activation", "count", "every")),
        *((name, ctypes.c_void_p) for name in ("shapes", "factors", "x", "tokens", "weight")),
        *((name, ctypes.c_void_p) for name in ("bias", "h0", "lengths", "states", "kept", "last")),
        *((name, ctypes.c_int64) for name in ("shortcut", "token_rows")),
        *((name, ctypes.c_void_p) for name in ("d_states", "d_last", "d_x", "d_weight")),
        *((name, ctypes.c_void_p) for name in ("d_factors", "d_bias", "d_h0")),
    ]


def _run(function: str, is_complex: bool, dtype: torch.dtype, **fields) -> None:
    """Call the kernel with tensors (None or empty: null) and numbers as fields of `struct Call`."""
    call, alive = _Call(), []
    for name, value in fields.items():
        if isinstance(value, Tensor):
            alive.append(value.contiguous())
            value = alive[-1].data_ptr() if value.numel() else None
        setattr(call, name, value)
    kernel, reason = library(dtype, is_complex)
    if kernel is None:
        raise RuntimeError(reason)
    if kernel[function](ctypes.byref(call)):
        raise MemoryError(f"{function}: no memory for the states in progress")


def _problem(x, factors, bias, h0, weight, lengths, shapes, is_complex, activation) -> dict:
    """The fields that both passes share."""
    is_tokens = weight is not None and not x.is_floating_point()
    if is_tokens and x.numel() and not 0 <= int(x.min()) <= int(x.max()) < weight.shape[0]:
        raise IndexError(f"kron_rnn: tokens must be from 0 to {weight.shape[0] - 1}")
    return {
        "is_complex": is_complex,
        "dtype": h0.dtype,
        "steps": x.shape[0],
        "batch": h0.shape[0],
        "size": prod(shapes[::2]),
        "inputs": 0 if weight is None else -1 if is_tokens else weight.shape[0],
        "activation": _ACTIVATIONS[activation],
        "count": len(shapes) // 2,
        "shapes": torch.tensor(shapes, dtype=torch.int64),
        "factors": factors,
        "x": None if is_tokens else x,
        "tokens": x.to(torch.int64) if is_tokens else None,
        "weight": weight,
        "token_rows": weight.shape[0] if is_tokens else 0,
        "bias": bias,
        "h0": h0,
        "lengths": None if lengths is None else lengths.to(torch.int64),
    }


@cache
def library(dtype: torch.dtype, is_complex: bool) -> Tuple[Optional[ctypes.CDLL], str]:
    """The compiled kernel for one type of state, or None and what is missing."""
    defines = [
        f"KRON_REAL={'float' if dtype == torch.float32 else 'double'}",
        f"KRON_COMPLEX={int(is_complex)}",
    ]
    try:
        return compiling.load(_FOLDER / "cpu.cpp", sorted(_FOLDER.glob("cpu_*.h")), defines), ""
    except compiling.CompileError as error:
        return None, str(error)


def obstacle(device: str, dtype: torch.dtype, is_complex: bool) -> Optional[str]:
    """What keeps this backend from serving, or None."""
    if torch.device(device).type != "cpu":
        return f"it serves tensors on the CPU, not on {device}"
    if dtype not in MAX_CONDITION:
        return f"it serves float32 and float64, not {dtype}"
    return library(dtype, is_complex)[1] or None


@torch.compiler.assume_constant_result
def thread_count() -> int:
    """$KRON_NUM_THREADS, else torch's own number of threads."""
    chosen = os.environ.get("KRON_NUM_THREADS")
    if not chosen:
        return torch.get_num_threads()
    if not chosen.isdecimal() or int(chosen) < 1:
        raise ValueError(f"$KRON_NUM_THREADS is {chosen!r}: must be a number of at least 1")
    return int(chosen)


def kron_rnn_cpu(
    x: Tensor,
    factors: Sequence[Tensor],
    bias: Tensor,
    h0: Tensor,
    lengths: Optional[Tensor],
    weight: Optional[Tensor],
    activation: str,
    need_output: bool,
    checkpoint_every: int,
) -> Tuple[Optional[Tensor], Tensor]:
    """`kron_rnn` with arguments as it describes and has checked them.

    Deterministic for a given number of threads. The gradients of factors are exact for any factors;
    square ones that are well-conditioned take the shorter way that cpu.cpp derives.
    """
    dtype = h0.dtype
    is_complex = factors[0].is_complex()
    if weight is not None and x.is_floating_point() and weight.shape[0] > MAX_FEATURES:
        x, weight = x.to(dtype) @ weight.to(dtype), None
    elif x.is_floating_point():
        x = x.to(dtype)
    flat = _flatten(factors).to(dtype)
    shapes = [size for w in factors for size in w.shape]
    weight = None if weight is None else weight.to(dtype)
    tensors = (x, flat, bias.to(dtype), h0, weight)
    keep = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    states, _, last = _operator(
        *tensors,
        lengths,
        shapes,
        is_complex,
        activation,
        need_output,
        checkpoint_every,
        keep,
        thread_count(),
    )
    return (states if need_output else None), last


def _forward(
    x: Tensor,  # shape: (T, B, W), (T, B, I) or (T, B) of integers
    factors: Tensor,  # shape: (Σ P_f Q_f C,)
    bias: Tensor,
    h0: Tensor,  # shape: (B, W)
    weight: Optional[Tensor],  # shape: (I, W)
    lengths: Optional[Tensor],  # shape: (B,)
    shapes: List[int],  # P_0, Q_0, P_1, …
    is_complex: bool,
    activation: str,
    need_output: bool,
    every: int,
    keep: bool,
    threads: int,
) -> Tuple[Tensor, Tensor, Tensor]:
    """States (T, B, W), what the backward pass keeps instead of them, and the last state (B, W)."""
    states, kept, last = _allocate(x, h0, need_output, every, keep)
    problem = _problem(x, factors, bias, h0, weight, lengths, shapes, is_complex, activation)
    results = {"states": states, "kept": kept, "last": last}
    _run("kron_rnn_forward", **problem, **results, every=every, threads=threads)
    return states, kept, last


def _forward_fake(
    x,
    factors,
    bias,
    h0,
    weight,
    lengths,
    shapes,
    is_complex,
    activation,
    need_output,
    every,
    keep,
    threads,
):
    return _allocate(x, h0, need_output, every, keep)


def _allocate(x: Tensor, h0: Tensor, need_output: bool, every: int, keep: bool):
    """Arrays for the results of `_forward`; those not asked for are empty."""
    steps = x.shape[0]
    states = h0.new_empty((steps, *h0.shape) if need_output else (0,))
    apart = keep and (every > 1 or not need_output)
    kept = h0.new_empty((-(-steps // every), *h0.shape) if apart else (0,))
    return states, kept, torch.empty_like(h0, memory_format=torch.contiguous_format)


def _backward(
    d_states: Optional[Tensor],
    d_last: Optional[Tensor],
    states: Tensor,
    kept: Tensor,
    x: Tensor,
    factors: Tensor,
    bias: Tensor,
    h0: Tensor,
    weight: Optional[Tensor],
    lengths: Optional[Tensor],
    shapes: List[int],
    is_complex: bool,
    activation: str,
    every: int,
    threads: int,
    need_d_x: bool,
) -> Tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, factors, bias, h0 and weight; empty for an x or weight without one."""
    d_x, d_factors, d_bias, d_h0, d_weight = _allocate_gradients(
        x, factors, bias, h0, weight, need_d_x
    )
    inverses = _inverses(factors, shapes, is_complex)
    sums = torch.empty(factors.shape, dtype=torch.float64)
    problem = _problem(x, factors, bias, h0, weight, lengths, shapes, is_complex, activation)
    _run(
        "kron_rnn_backward",
        **problem,
        every=every,
        threads=threads,
        shortcut=int(inverses is not None),
        states=states,
        kept=kept,
        d_states=d_states,
        d_last=d_last,
        d_x=d_x,
        d_weight=d_weight,
        d_factors=sums,
        d_bias=d_bias,
        d_h0=d_h0,
    )
    if inverses is not None:
        products = _unflatten(sums, shapes, is_complex)
        sums = _flatten([w.mH @ k for w, k in zip(inverses, products, strict=True)])
    return d_x, d_factors.copy_(sums), d_bias, d_h0, d_weight


def _backward_fake(
    d_states, d_last, states, kept, x, factors, bias, h0, weight, lengths, shapes, is_complex,
    activation, every, threads, need_d_x,
):  # fmt: skip
    return _allocate_gradients(x, factors, bias, h0, weight, need_d_x)


def _allocate_gradients(x, factors, bias, h0, weight, need_d_x):
    def like(tensor: Optional[Tensor], needed: bool) -> Tensor:
        return h0.new_empty(tensor.shape if needed else (0,))

    needed = [need_d_x, True, True, True, weight is not None]
    return tuple(like(*pair) for pair in zip((x, factors, bias, h0, weight), needed, strict=True))


def _flatten(factors: Sequence[Tensor]) -> Tensor:  # shape: (Σ P_f Q_f C,), real
    parts = [torch.view_as_real(w) if w.is_complex() else w for w in factors]
    return torch.cat([part.reshape(-1) for part in parts])


def _unflatten(flat: Tensor, shapes: Sequence[int], is_complex: bool) -> List[Tensor]:
    """Factors as matrices again, shape (P_f, Q_f) each."""
    vector = torch.view_as_complex(flat.reshape(-1, 2)) if is_complex else flat
    sizes = list(zip(shapes[::2], shapes[1::2], strict=True))
    parts = vector.split([p * q for p, q in sizes])
    return [part.view(size) for part, size in zip(parts, sizes, strict=True)]


def _inverses(factors: Tensor, shapes: List[int], is_complex: bool) -> Optional[List[Tensor]]:
    """W_f⁻¹ in double precision when the factors' gradients may be solved for, else None.

    They may when all factors are square and conditioned better than MAX_CONDITION (in the 1-norm).
    A single factor needs no recomputed stages in any case, so there is nothing to gain.
    """
    if len(shapes) == 2 or shapes[::2] != shapes[1::2]:
        return None
    inverses = []
    for w in _unflatten(factors.double(), shapes, is_complex):
        inverse, info = torch.linalg.inv_ex(w)
        condition = w.abs().sum(0).max() * inverse.abs().sum(0).max()
        if int(info) != 0 or not float(condition) <= MAX_CONDITION[factors.dtype]:
            return None
        inverses.append(inverse)
    return inverses


def _setup_context(ctx, inputs, output) -> None:
    x, factors, bias, h0, weight, lengths, *rest = inputs
    ctx.shapes, ctx.is_complex, ctx.activation, need_output, ctx.every, _, ctx.threads = rest
    states, kept, _ = output
    if ctx.every > 1 or not need_output:
        states = states.new_empty(0)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(states, kept, x, factors, bias, h0, weight, lengths)


def _differentiate(ctx, d_states, d_kept, d_last):
    if d_states is not None and d_states.numel() == 0:
        d_states = None
    d_x, d_factors, d_bias, d_h0, d_weight = _backward_operator(
        d_states,
        d_last,
        *ctx.saved_tensors,
        ctx.shapes,
        ctx.is_complex,
        ctx.activation,
        ctx.every,
        ctx.threads,
        ctx.needs_input_grad[0],
    )
    d_x = d_x if ctx.needs_input_grad[0] else None
    d_weight = d_weight if ctx.needs_input_grad[4] else None
    return d_x, d_factors, d_bias, d_h0, d_weight, *[None] * 8


def _refuse(ctx, *gradients):
    raise RuntimeError(
        "the CPU kernel of kron_rnn has no second derivative; use backend='reference' for one"
    )


def _ignore(ctx, inputs, output) -> None:
    pass


def _define(name, function, fake, backward, setup_context):
    """`function` as an operator that torch.compile, autograd and torch.library know."""
    operator = torch.library.custom_op(f"kron_plugin::{name}", function, mutates_args=())
    operator.register_fake(fake)
    operator.register_autograd(backward, setup_context=setup_context)
    return operator


_backward_operator = _define("kron_rnn_cpu_backward", _backward, _backward_fake, _refuse, _ignore)
_operator = _define("kron_rnn_cpu", _forward, _forward_fake, _differentiate, _setup_context)
