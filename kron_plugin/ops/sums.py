"""Sums over segments of a sequence, of which a segment may have no part."""

from typing import Optional, Sequence, Tuple

from torch import Tensor

Parts = Tuple[Optional[Tensor], ...]
NONE: Parts = (None, None, None)


def plus(sums: Parts, parts: Parts) -> Parts:
    """Each of the sums with its part added; None is nothing."""
    return tuple(
        b if a is None else a if b is None else a + b for a, b in zip(sums, parts, strict=True)
    )


def put(results: Sequence[Tensor], totals: Parts) -> None:
    """Copy each total to its place, in the type that is wanted there."""
    for result, total in zip(results, totals, strict=True):
        if total is not None:
            result.copy_(total)
