"""The fused CPU kernel (cpu.cpp): its arguments and what it needs."""

import ctypes
from pathlib import Path
from typing import Optional

import torch

from ..backends import Problem
from ..native import kernel
from ..native.solve import inverses, solve
from .operator import define, entries, split_gates

_SOURCE = Path(__file__).with_name("cpu.cpp")


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
        ("interpreter", ctypes.c_void_p),
    ]


def obstacle(problem: Problem) -> Optional[str]:
    """What keeps this backend from serving, or None."""
    return kernel.obstacle(_SOURCE, problem)


def _run(
    function, x, factors, bias, weight, lengths, shapes, counts, every, threads, **others
) -> None:
    """One of the kernel's two passes; `others` are the fields that are not in both."""
    kernel.run(
        _SOURCE,
        function,
        _Call(),
        factors.dtype,
        False,
        **kernel.input_fields("kron_lstm", x, weight, lengths),
        threads=threads,
        size=bias.shape[0] // 4,
        every=min(every, x.shape[0]),
        counts=torch.tensor(counts),
        shapes=torch.tensor(shapes),
        factors=factors,
        bias=bias,
        **others,
    )


def _forward(
    x, factors, bias, h0, c0, weight, lengths, shapes, counts, every, threads,
    outputs, kept, h_n, c_n,
) -> None:  # fmt: skip
    problem = (x, factors, bias, weight, lengths, shapes, counts, every, threads)
    results = {"outputs": outputs, "kept": kept, "h_n": h_n, "c_n": c_n}
    _run("kron_lstm_forward", *problem, h0=h0, c0=c0, **results)


def _backward(
    d_outputs, d_h_n, d_c_n, kept, x, factors, bias, h0, c0, weight, lengths, shapes, counts, every,
    threads, d_x, d_factors, d_bias, d_h0, d_c0, d_weight,
) -> None:  # fmt: skip
    gates = split_gates(shapes, counts)
    sizes = entries(gates)
    found = [inverses(w, g, False) for w, g in zip(factors.split(sizes), gates, strict=True)]
    sums = torch.empty(factors.shape, dtype=torch.float64)
    _run(
        "kron_lstm_backward",
        *(x, factors, bias, weight, lengths, shapes, counts, every, threads),
        shortcut=torch.tensor([int(inverse is not None) for inverse in found]),
        kept=kernel.aligned(kept),
        h0=h0,
        c0=c0,
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
    for part, inverse, gate in zip(sums.split(sizes), found, gates, strict=True):
        if inverse is not None:
            part.copy_(solve(part, inverse, gate, False))
    d_factors.copy_(sums)


# Deterministic for a given number of threads. The gradients of factors are exact for any factors;
# gates whose factors are square and well-conditioned take the shorter way that kron_rnn/cpu.cpp
# derives.
kron_lstm_cpu = define("cpu", _forward, _backward, kernel.thread_count)
