"""Products with a Kronecker product of small matrices, without ever forming it.

Throughout, ``factors`` is a sequence of matrices W_f of shape (P_f, Q_f), all real or all complex,
and W = W_0 ⊗ W_1 ⊗ … ⊗ W_{F-1} has shape (∏P_f, ∏Q_f). The first factor owns the slowest digits of
an index, as in `torch.kron`.
"""

from functools import reduce
from typing import Sequence

import torch
from torch import Tensor


def dense(
    factors: Sequence[Tensor],  # shape: (P_f, Q_f) each
) -> Tensor:  # shape: (∏P_f, ∏Q_f)
    """The Kronecker product itself: the oracle of the tests, too large for anything else."""
    return reduce(torch.kron, factors)


def kron_matmul(
    x: Tensor,  # shape: (..., ∏Q_f)
    factors: Sequence[Tensor],  # shape: (P_f, Q_f) each
) -> Tensor:  # shape: (..., ∏P_f)
    """W x for every vector x, in O(N Σ P_f) operations for square factors.

    Each round multiplies the fastest digit of the index by its factor and moves the result to the
    front, so after F rounds every digit is done and back in its place. Real x may meet complex
    factors; the result then is complex. Differentiable to any order.

    Raises:
        ValueError: the factors are none, no matrices, or do not fit the last axis of x.
    """
    if not factors or any(w.dim() != 2 for w in factors):
        raise ValueError("kron_matmul: factors must be one or more matrices of shape (P_f, Q_f)")
    n_in = 1
    for w in factors:
        n_in *= w.shape[1]
    if x.shape[-1] != n_in:
        sizes = ", ".join(f"{w.shape[0]}x{w.shape[1]}" for w in factors)
        raise ValueError(
            f"kron_matmul: factors {sizes} take vectors of size {n_in}, but x has {x.shape[-1]}"
        )
    dtype = torch.promote_types(x.dtype, factors[0].dtype)
    y = x.to(dtype).reshape(-1, n_in)
    batch = y.shape[0]
    for w in reversed(factors):
        y = y.reshape(batch, -1, w.shape[1]) @ w.to(dtype).transpose(0, 1)
        y = y.transpose(1, 2)
    return y.reshape(*x.shape[:-1], -1)
