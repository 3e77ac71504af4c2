"""All factors as one real vector: one argument of an operator, with one gradient."""

from typing import List, Sequence

import torch
from torch import Tensor

from ..activation import as_complex


def flatten(factors: Sequence[Tensor]) -> Tensor:  # shape: (Σ P_f Q_f C,), real
    """All factors one after the other, row by row, complex numbers as (re, im)."""
    parts = [torch.view_as_real(w.resolve_conj()) if w.is_complex() else w for w in factors]
    return torch.cat([part.reshape(-1) for part in parts])


def shapes_of(factors: Sequence[Tensor]) -> List[int]:
    """P_0, Q_0, P_1, …, as numbers: under torch.jit.trace sizes are tensors."""
    return [int(size) for w in factors for size in w.shape]


def unflatten(flat: Tensor, shapes: Sequence[int], is_complex: bool) -> List[Tensor]:
    """Factors as matrices again, shape (P_f, Q_f) each; `shapes` as from `shapes_of`."""
    vector = as_complex(flat.reshape(-1, 2)) if is_complex else flat
    sizes = list(zip(shapes[::2], shapes[1::2], strict=True))
    parts = vector.split([p * q for p, q in sizes])
    return [part.view(size) for part, size in zip(parts, sizes, strict=True)]
