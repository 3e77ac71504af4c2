"""The fused CPU kernel (cpu.cpp): its arguments, its threads and what it needs."""

import ctypes
from math import prod
from pathlib import Path
from typing import Optional

import torch

from ..backends import Problem
from ..native import kernel
from ..native.solve import inverses, solve
from .operator import ACTIVATIONS, define

_SOURCE = Path(__file__).with_name("cpu.cpp")


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
        ("interpreter", ctypes.c_void_p),
    ]


def _run(
    function, x, factors, bias, h0, weight, lengths, shapes, is_complex, activation, every, threads,
    **others,
) -> None:  # fmt: skip
    """One of the kernel's two passes; `others` are the fields that are not in both."""
    kernel.run(
        _SOURCE,
        function,
        _Call(),
        h0.dtype,
        is_complex,
        **kernel.input_fields("kron_rnn", x, weight, lengths),
        threads=threads,
        size=prod(shapes[::2]),
        activation=ACTIVATIONS[activation],
        every=min(every, x.shape[0]),
        count=len(shapes) // 2,
        shapes=torch.tensor(shapes, dtype=torch.int64),
        factors=factors,
        bias=bias,
        h0=h0,
        **others,
    )


def obstacle(problem: Problem) -> Optional[str]:
    """What keeps this backend from serving, or None. Compiles the kernel to find out."""
    return kernel.obstacle(_SOURCE, problem)


def _forward(
    x, factors, bias, h0, weight, lengths, shapes, is_complex, activation, every, threads,
    states, kept, last,
) -> None:  # fmt: skip
    problem = (x, factors, bias, h0, weight, lengths, shapes, is_complex, activation)
    _run("kron_rnn_forward", *problem, every, threads, states=states, kept=kept, last=last)


def _backward(
    d_states, d_last, states, kept, x, factors, bias, h0, weight, lengths, shapes, is_complex,
    activation, every, threads, d_x, d_factors, d_bias, d_h0, d_weight,
) -> None:  # fmt: skip
    inverse = inverses(factors, shapes, is_complex)
    sums = torch.empty(factors.shape, dtype=torch.float64)
    problem = (x, factors, bias, h0, weight, lengths, shapes, is_complex, activation)
    _run(
        "kron_rnn_backward",
        *(*problem, every, threads),
        shortcut=int(inverse is not None),
        states=states,
        kept=kernel.aligned(kept),
        d_states=d_states,
        d_last=d_last,
        d_x=d_x,
        d_weight=d_weight,
        d_factors=sums,
        d_bias=d_bias,
        d_h0=d_h0,
    )
    d_factors.copy_(sums if inverse is None else solve(sums, inverse, shapes, is_complex))


# Deterministic for a given number of threads. The gradients of factors are exact for any factors;
# square ones that are well-conditioned take the shorter way that cpu.cpp derives.
kron_rnn_cpu = define("cpu", _forward, _backward, kernel.thread_count)
