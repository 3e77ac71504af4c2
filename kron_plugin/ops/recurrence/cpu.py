"""The fused CPU kernel (native/recurrence.cpp): its arguments, its threads and what it needs."""

import ctypes
from functools import cache
from typing import Callable, Optional

import torch
from torch import Tensor

from ..backends import Problem
from ..inputs import MAX_FEATURES
from ..kron.flat import Layout
from ..kron.solve import inverses, solve
from ..native import kernel, memory
from .arguments import Arguments
from .cell import Cell
from .operator import define

MOST_WEIGHTS = 1 << 16  # of the input that stay in the second-level cache with their gradients
SAME = ("threads", "steps", "batch", "size", "inputs", "factors", "weight", "bias")  # by name


class Call(ctypes.Structure):
    """`struct Call` of call.h."""

    _NUMBERS = "threads steps batch size inputs token_rows activation every in_sequences"
    _POINTERS = (
        "counts shapes factors x tokens weight bias initial lengths outputs kept last"
        " shortcut d_outputs d_last d_x d_weight d_factors d_bias d_initial interpreter"
    )
    _fields_ = [
        *((name, ctypes.c_int64) for name in _NUMBERS.split()),
        *((name, ctypes.c_void_p) for name in _POINTERS.split()),
    ]


@cache
def _numbers(*values: int) -> Tensor:
    """Numbers as a kernel reads them; the same ones are asked for at every call."""
    return torch.tensor(values)


def obstacle(cell: Cell) -> Callable[[Problem], Optional[str]]:
    """Why this backend cannot serve, or None. Compiles the kernel to find out."""
    return lambda problem: kernel.obstacle(cell.name, problem)


def most_features(layout: Layout, width: int) -> int:
    """The most features, each with `width` weights, that it projects faster than torch does."""
    ends = [shapes[2:][-8:] for shapes in layout.products]  # below the first factor
    of_units = all(end == (2,) * 8 for end in ends)  # as can_hold_units of native/product.h
    return max(MAX_FEATURES, MOST_WEIGHTS // width) if of_units else MAX_FEATURES


def backend(cell: Cell) -> Callable:
    """The recurrence by the fused kernel.

    It is deterministic for a given number of threads. The gradients of factors are exact for any
    factors; for well-conditioned square ones they take the shorter way of recurrence.cpp.
    """

    def run(function: str, given: Arguments, **others) -> None:
        """One of the kernel's two passes; `others` are the fields that only one pass has."""
        tokens = None
        if given.is_tokens:
            tokens = kernel.tokens(cell.operation, given.x, given.symbols)
        kernel.run(
            cell.name,
            function,
            Call(),
            given.factors.dtype,
            given.is_complex,
            **{name: getattr(given, name) for name in SAME},
            token_rows=given.symbols if given.is_tokens else 0,
            activation=list(cell.activations).index(given.activation),
            every=min(given.every, given.steps),
            counts=_numbers(*given.counts),
            shapes=_numbers(*given.shapes),
            x=None if given.is_tokens else given.x,
            tokens=tokens,
            initial=given.state,
            lengths=None if given.lengths is None else given.lengths.to(torch.int64),
            **others,
        )

    def forward(given, outputs, kept, last) -> None:
        run("forward", given, outputs=outputs, kept=kept, last=last)

    def backward(
        given, d_outputs, d_last, outputs, kept, d_x, d_factors, d_bias, d_state, d_weight
    ) -> None:
        layout = given.layout
        found, usable = inverses(given.factors, layout)
        sums = torch.empty(given.factors.shape, dtype=torch.float64)
        run(
            "backward",
            given,
            shortcut=_numbers(*map(int, usable)),
            outputs=outputs,
            kept=kernel.aligned(kept),
            d_outputs=d_outputs,
            d_last=d_last,
            d_x=d_x,
            d_weight=d_weight,
            d_factors=sums,
            d_bias=d_bias,
            d_initial=d_state,
        )
        if any(usable):
            solve(sums, found, layout, usable)
        d_factors.copy_(sums)

    return define(cell, "cpu", forward, backward, kernel.thread_count, memory.empty, most_features)
