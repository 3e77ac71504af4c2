"""The fused CPU kernel (cpu.cpp): its arguments, its threads and what it needs."""

import ctypes
import os
from functools import cache
from math import prod
from pathlib import Path
from typing import List, Optional, Tuple

import torch
from torch import Tensor

from ..backends import Problem
from ..kron.flat import flatten, unflatten
from ..native import compile as compiling
from .operator import ACTIVATIONS, define

_FOLDER = Path(__file__).parent

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
        "activation": ACTIVATIONS[activation],
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


def obstacle(problem: Problem) -> Optional[str]:
    """What keeps this backend from serving, or None. Compiles the kernel to find out."""
    if problem.dtype not in MAX_CONDITION:
        return f"it serves float32 and float64, not {problem.dtype}"
    return library(problem.dtype, problem.is_complex)[1] or None


def thread_count() -> int:
    """$KRON_NUM_THREADS, else torch's own number of threads."""
    chosen = os.environ.get("KRON_NUM_THREADS")
    if not chosen:
        return torch.get_num_threads()
    if not chosen.isdecimal() or int(chosen) < 1:
        raise ValueError(f"$KRON_NUM_THREADS is {chosen!r}: must be a number of at least 1")
    return int(chosen)


def _forward(
    x, factors, bias, h0, weight, lengths, shapes, is_complex, activation, every, states, kept, last
) -> None:  # fmt: skip
    problem = _problem(x, factors, bias, h0, weight, lengths, shapes, is_complex, activation)
    results = {"states": states, "kept": kept, "last": last}
    _run("kron_rnn_forward", **problem, **results, every=every, threads=thread_count())


def _backward(
    d_states, d_last, states, kept, x, factors, bias, h0, weight, lengths, shapes, is_complex,
    activation, every, d_x, d_factors, d_bias, d_h0, d_weight,
) -> None:  # fmt: skip
    inverses = _inverses(factors, shapes, is_complex)
    sums = torch.empty(factors.shape, dtype=torch.float64)
    problem = _problem(x, factors, bias, h0, weight, lengths, shapes, is_complex, activation)
    _run(
        "kron_rnn_backward",
        **problem,
        every=every,
        threads=thread_count(),
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
        products = unflatten(sums, shapes, is_complex)
        sums = flatten([w.mH @ k for w, k in zip(inverses, products, strict=True)])
    d_factors.copy_(sums)


def _inverses(factors: Tensor, shapes: List[int], is_complex: bool) -> Optional[List[Tensor]]:
    """W_f⁻¹ in double precision when the factors' gradients may be solved for, else None.

    They may when all factors are square and conditioned better than MAX_CONDITION (in the 1-norm).
    A single factor needs no recomputed stages in any case, so there is nothing to gain.
    """
    if len(shapes) == 2 or shapes[::2] != shapes[1::2]:
        return None
    inverses = []
    for w in unflatten(factors.double(), shapes, is_complex):
        inverse, info = torch.linalg.inv_ex(w)
        condition = w.abs().sum(0).max() * inverse.abs().sum(0).max()
        if int(info) != 0 or not float(condition) <= MAX_CONDITION[factors.dtype]:
            return None
        inverses.append(inverse)
    return inverses


# Deterministic for a given number of threads. The gradients of factors are exact for any factors;
# square ones that are well-conditioned take the shorter way that cpu.cpp derives.
kron_rnn_cpu = define("cpu", _forward, _backward)
