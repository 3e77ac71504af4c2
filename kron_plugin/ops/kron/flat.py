"""All factors as one real vector: one argument of an operator, with one gradient."""

from itertools import groupby
from typing import List, NamedTuple, Sequence, Tuple

import torch
from torch import Tensor

from ..activation import as_complex


class Layout(NamedTuple):
    """Where the factors of several products are in one vector, as numbers: under torch.jit.trace
    the sizes of tensors are tensors."""

    shapes: Tuple[int, ...]  # P_0, Q_0, P_1, … of the first product, then of the next
    counts: Tuple[int, ...]  # how many factors each product has
    is_complex: bool

    @property
    def products(self) -> List[Tuple[int, ...]]:
        """P_0, Q_0, P_1, … of each product."""
        ends = [2 * sum(self.counts[: k + 1]) for k in range(len(self.counts))]
        pairs = zip(ends, self.counts, strict=True)
        return [self.shapes[end - 2 * count : end] for end, count in pairs]

    def by_product(self, numbers: Tensor) -> List[Tensor]:
        """The factors' own numbers, or others laid out like them, product by product."""
        return list(numbers.split([self._entries(shapes) for shapes in self.products]))

    def matrices(self, numbers: Tensor) -> List[List[Tensor]]:
        """The factors of each product, shape (P_f, Q_f) each."""
        pairs = zip(self.by_product(numbers), self.products, strict=True)
        return [unflatten(own, shapes, self.is_complex) for own, shapes in pairs]

    def _entries(self, shapes: Sequence[int]) -> int:
        return (1 + self.is_complex) * sum(p * q for p, q in _pairs(shapes))


class Flat(NamedTuple):
    """The factors of several products."""

    numbers: Tensor  # shape: (Σ P_f Q_f C,), real; complex numbers as (re, im)
    layout: Layout


def flatten(factors: Sequence[Tensor]) -> Tensor:  # shape: (Σ P_f Q_f C,), real
    """All factors one after the other, row by row, complex numbers as (re, im)."""
    parts = [torch.view_as_real(w.resolve_conj()) if w.is_complex() else w for w in factors]
    return torch.cat([part.reshape(-1) for part in parts])


def shapes_of(factors: Sequence[Tensor]) -> Tuple[int, ...]:
    """P_0, Q_0, P_1, …"""
    return tuple(int(size) for w in factors for size in w.shape)


def unflatten(flat: Tensor, shapes: Sequence[int], is_complex: bool) -> List[Tensor]:
    """Factors as matrices again, shape (P_f, Q_f) each; `shapes` as from `shapes_of`."""
    return [w for run in runs(flat, shapes, is_complex) for w in run.unbind()]


def runs(flat: Tensor, shapes: Sequence[int], is_complex: bool) -> List[Tensor]:
    """Neighbouring factors of the same size together, shape (M, P, Q) each."""
    vector = as_complex(flat.reshape(-1, 2)) if is_complex else flat
    sizes = [(len(list(same)), *size) for size, same in groupby(_pairs(shapes))]
    parts = vector.split([m * p * q for m, p, q in sizes])
    return [part.view(size) for part, size in zip(parts, sizes, strict=True)]


def _pairs(shapes: Sequence[int]) -> List[Tuple[int, int]]:
    return list(zip(shapes[::2], shapes[1::2], strict=True))
