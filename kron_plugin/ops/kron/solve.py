"""Gradients of factors, solved from the sums of the kernels where that is faster."""

from typing import List, Optional, Sequence

import torch
from torch import Tensor

from .flat import flatten, unflatten

# The largest condition number of a factor, by type, for which its gradient is solved for. Beyond
# it, the gradient is summed stage by stage. The error of solving, relative to the largest entry, is
# about 1e-7 (float32) or 2e-16 (float64) times the condition number: at most 3e-6 and 2e-13. The
# error of summing is about 1e-6 and 3e-15.
MAX_CONDITION = {torch.float32: 30.0, torch.float64: 1000.0}

# How far the scale of the product of all factors may be from 1. Beyond this, W^H delta comes near
# the limits of single precision, though no factor's own gradient does.
MAX_SCALE = 1e10


def inverses(factors: Tensor, shapes: Sequence[int], is_complex: bool) -> Optional[List[Tensor]]:
    """W_f⁻¹ in double precision when the factors' gradients may be solved for, else None.

    They may if all factors are square and their condition numbers (1-norm) at most MAX_CONDITION,
    and the scale of their product is within MAX_SCALE.
    For a single factor no stages are computed again, so there is nothing to gain.
    """
    if len(shapes) == 2 or shapes[::2] != shapes[1::2]:
        return None
    matrices = unflatten(factors.double(), shapes, is_complex)
    found, scale = list(matrices), 1.0
    for size in {w.shape for w in matrices}:  # all of one size at once
        which = [i for i, w in enumerate(matrices) if w.shape == size]
        w = torch.stack([matrices[i] for i in which])
        inverse, info = torch.linalg.inv_ex(w)
        norm = w.abs().sum(-2).amax(-1)
        condition = norm * inverse.abs().sum(-2).amax(-1)
        scale *= float(norm.prod())
        if info.any() or not (condition <= MAX_CONDITION[factors.dtype]).all():
            return None
        for i, one in zip(which, inverse, strict=True):
            found[i] = one
    return found if 1 / MAX_SCALE < scale < MAX_SCALE else None


def solve(sums: Tensor, found: Sequence[Tensor], shapes: Sequence[int], is_complex: bool) -> Tensor:
    """dW_f = W_f⁻ᴴ K_f for all factors, from the sums K_f = W_fᴴ dW_f; all in one real vector."""
    products = unflatten(sums, shapes, is_complex)
    return flatten([w.mH @ k for w, k in zip(found, products, strict=True)])
