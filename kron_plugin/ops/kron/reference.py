"""Products with a Kronecker product of small matrices, by definition, without forming it.

Throughout, ``factors`` is a sequence of matrices W_f of shape (P_f, Q_f), all real or all complex,
and W = W_0 ⊗ W_1 ⊗ … ⊗ W_{F-1} has shape (∏P_f, ∏Q_f). The first factor has the slowest digits of
an index, as in `torch.kron`. Dots at the start of a shape are batch axes, which are broadcast.
"""

from functools import reduce
from typing import List, Sequence

import torch
from torch import Tensor


def dense(
    factors: Sequence[Tensor],  # shape: (..., P_f, Q_f) each
) -> Tensor:  # shape: (..., ∏P_f, ∏Q_f)
    """The Kronecker product itself: the oracle of the tests, too large for other uses."""
    return reduce(_kron, factors)


def _kron(v: Tensor, w: Tensor) -> Tensor:
    """`torch.kron` matrix by matrix: torch's own function treats batch axes as digits."""
    product = v[..., :, None, :, None] * w[..., None, :, None, :]
    return product.flatten(-4, -3).flatten(-2)


def kron_matmul_reference(
    x: Tensor,  # shape: (..., ∏Q_f)
    factors: Sequence[Tensor],  # shape: (..., P_f, Q_f) each
) -> Tensor:  # shape: (..., ∏P_f)
    """W x for every vector x, in O(N Σ P_f) operations for square factors.

    Each round multiplies the fastest digit of the index by its factor and moves the result to the
    front, so after F rounds every digit is done and back in its place.
    """
    if max([w.dim() for w in factors]) > 2:
        leading = torch.broadcast_shapes(x.shape[:-1], *[w.shape[:-2] for w in factors])
        x = x.expand(*leading, -1)
        factors = [w.expand(*leading, -1, -1).flatten(0, -3) for w in factors]
    size = x.shape[-1]
    y = x.reshape(-1, size)
    batch = y.shape[0]
    for w in reversed(factors):
        p, q = w.shape[-2:]
        y = y.reshape(batch, size // q, q) @ w.transpose(-2, -1)
        y, size = y.transpose(1, 2), size // q * p
    return y.reshape(*x.shape[:-1], size)


def factor_gradients(
    g: Tensor,  # shape: (M, ∏P_f)
    x: Tensor,  # shape: (M, ∏Q_f)
    factors: Sequence[Tensor],  # shape: (P_f, Q_f) each
) -> List[Tensor]:  # shape: (P_f, Q_f) each
    """The gradients of the factors in y = W x, from g = dL/dy, as autograd would find them.

    Gradients of complex numbers are dL/dRe + i dL/dIm, as everywhere in PyTorch.
    """
    inputs, gradients = [], []
    for w in reversed(factors):
        inputs.append(x.flatten(1).unflatten(1, (-1, w.shape[1])))
        x = (inputs[-1] @ w.transpose(0, 1)).transpose(1, 2)
    for w in factors:
        g = g.flatten(1).unflatten(1, (w.shape[0], -1)).transpose(1, 2)
        rows = inputs.pop().reshape(-1, w.shape[1])
        gradients.append(g.reshape(-1, w.shape[0]).T @ rows.conj())
        g = g @ w.conj()
    return gradients
