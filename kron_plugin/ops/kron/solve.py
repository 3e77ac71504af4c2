"""Gradients of factors, solved from the sums of the kernels where that is faster."""

import math
from itertools import accumulate
from typing import List, Sequence, Tuple

import torch
from torch import Tensor

from .flat import Layout, flatten, runs

# The largest condition number of a factor, by type, for which its gradient is solved for. Beyond
# it, the gradient is summed stage by stage. The error of solving, relative to the largest entry, is
# about 1e-7 (float32) or 2e-16 (float64) times the condition number: at most 3e-6 and 2e-13. The
# error of summing is about 1e-6 and 3e-15.
MAX_CONDITION = {torch.float32: 30.0, torch.float64: 1000.0}

# How far the scale of the product of all factors may be from 1. Beyond this, W^H delta comes near
# the limits of single precision, though no factor's own gradient does.
MAX_SCALE = 1e10


def inverses(
    factors: Tensor,  # all numbers
    layout: Layout,
) -> Tuple[List[Tensor], List[bool]]:
    """W_f⁻¹ in double precision, as `runs` puts factors together, and for each product whether the
    gradients of its factors may be solved for.

    They may if all factors are square and their condition numbers (1-norm) at most MAX_CONDITION,
    and the scale of their product is within MAX_SCALE.
    For a single factor no stages are computed again, so there is nothing to gain.
    """
    none = [False] * len(layout.counts)
    if min(layout.counts) == 1 or layout.shapes[::2] != layout.shapes[1::2]:
        return [], none
    found, norms, conditions = [], [], []
    for w in runs(factors.double(), layout.shapes, layout.is_complex):
        inverse, info = torch.linalg.inv_ex(w)
        norm = w.abs().sum(1).amax(1)
        condition = norm * inverse.abs().sum(1).amax(1)
        found.append(inverse)
        norms += norm.tolist()
        conditions += torch.where(info == 0, condition, math.inf).tolist()
    most = MAX_CONDITION[factors.dtype]
    usable, first = [], 0
    for end in accumulate(layout.counts):
        fits = all(condition <= most for condition in conditions[first:end])
        scale = math.prod(norms[first:end])
        usable.append(fits and 1 / MAX_SCALE < scale < MAX_SCALE)
        first = end
    return found, usable


def solve(sums: Tensor, found: Sequence[Tensor], layout: Layout, usable: Sequence[bool]) -> None:
    """Put dW_f = W_f⁻ᴴ K_f in the place of the sums K_f = W_fᴴ dW_f, in the usable products."""
    pairs = zip(found, runs(sums, layout.shapes, layout.is_complex), strict=True)
    solved = flatten([w.mH @ k for w, k in pairs])
    parts = zip(*map(layout.by_product, (sums, solved)), usable, strict=True)
    for into, part, wanted in parts:
        if wanted:
            into.copy_(part)
