"""How unitary a Kronecker product is, computed from its factors.

Factors are real or complex matrices of shape (P_f, Q_f). A product of unitary factors is unitary,
and the singular values of the product are the products of the factors' singular values.
"""

from functools import reduce
from math import pi, prod
from typing import Dict, List, Optional, Sequence, Tuple

import torch
from torch import Tensor

from .arguments import real


def unitary_penalty(factors: Sequence[Tensor]) -> Tensor:
    """Σ_f ‖W_fᴴ W_f − I‖_F², a scalar: the soft unitary constraint of KRU."""
    return penalty_of(gram_errors(factors))


def unitary_deviation(factors: Sequence[Tensor]) -> Tensor:
    """max_f ‖W_fᴴ W_f − I‖_F, a scalar: 0 when every factor is unitary."""
    return deviation_of(gram_errors(factors))


def gram_errors(factors: Sequence[Tensor]) -> List[Tensor]:  # shape: (factors, Q · Q · C) each
    """W_fᴴ W_f − I as real numbers, in one tensor for all factors of equal shape. The squared
    Frobenius norm is then a sum of squares, which is differentiable at 0."""
    errors = []
    for places in alike(factors):
        w = torch.stack([factors[i] for i in places])
        error = w.mH @ w - torch.eye(w.shape[-1], dtype=w.dtype, device=w.device)
        error = torch.view_as_real(error) if error.is_complex() else error
        errors.append(error.flatten(1))
    return errors


def penalty_of(errors: Sequence[Tensor]) -> Tensor:
    """`unitary_penalty` from `gram_errors`."""
    return reduce(torch.add, [error.square().sum() for error in errors])


def deviation_of(errors: Sequence[Tensor]) -> Tensor:
    """`unitary_deviation` from `gram_errors`."""
    return torch.cat([torch.linalg.vector_norm(error, dim=1) for error in errors]).max()


def alike(tensors: Sequence[Tensor]) -> List[List[int]]:
    """The places of tensors of equal shape and type, which can be stacked. One operation on a stack
    takes the time of one on a small matrix."""
    places: Dict[Tuple, List[int]] = {}
    for i, tensor in enumerate(tensors):
        key = (*map(int, tensor.shape), tensor.dtype)  # sizes are tensors under torch.jit.trace
        places.setdefault(key, []).append(i)
    return list(places.values())


def singular_values(factors: Sequence[Tensor]) -> Tensor:
    """The N singular values of W_0 ⊗ … ⊗ W_{F-1}, largest first, without forming it."""
    values = reduce(torch.kron, [torch.linalg.svdvals(w) for w in factors])
    missing = prod(w.shape[0] for w in factors) - values.numel()
    values = torch.cat([values, values.new_zeros(missing)])
    return values.sort(descending=True).values


def singular_range(factors: Sequence[Tensor]) -> Tensor:  # shape: (2,)
    """The smallest and the largest of `singular_values`, from the extremes of each factor."""
    smallest, largest = [], []
    for places in alike(factors):
        values = torch.linalg.svdvals(torch.stack([factors[i] for i in places]))
        smallest.append(values[:, -1].prod())
        largest.append(values[:, 0].prod())
    has_null_space = any(w.shape[0] != w.shape[1] for w in factors)
    low = torch.stack(smallest).prod() * (not has_null_space)
    return torch.stack([low, torch.stack(largest).prod()])


@torch.no_grad()
def unitary_(factor: Tensor, angle: Optional[float] = None) -> Tensor:
    """Fill a (P, Q) matrix with a random unitary one, uniformly over all of them (Haar).

    A tall matrix gets orthonormal columns, a wide one orthonormal rows. A wide one cannot have
    W_fᴴ W_f = I, so its penalty is at least Q − P.

    Args:
        angle: the matrix is exp(A) with uniform eigenvectors, and eigenvalues exp(iφ) with φ
            uniform from −angle to angle, in radians. The eigenvalues of a real matrix are pairs
            exp(±iφ), and a 1 if P is odd.

    Raises:
        ValueError: the angle is out of range, or the matrix is rectangular.
        TypeError: the angle is not a number.
    """
    p, q = factor.shape
    if angle is not None:
        angle = real("angle", angle, pi, "from 0 to π, in radians")
        if p != q:
            raise ValueError(f"angle={angle}: a factor of {p}x{q} has no eigenvalues; leave it out")
    if factor.is_meta:  # nothing to fill
        return factor
    if angle is not None:
        eigenvectors = unitary_(torch.empty_like(factor))
        generator = _turns(factor, angle)
        return factor.copy_(eigenvectors @ torch.matrix_exp(generator) @ eigenvectors.mH)
    gaussian = torch.randn(max(p, q), min(p, q), dtype=factor.dtype, device=factor.device)
    unitary, r = torch.linalg.qr(gaussian)
    # The QR of a Gaussian is uniform only after the phases of R's diagonal are removed.
    unitary = unitary * r.diagonal().sgn()
    return factor.copy_(unitary if p >= q else unitary.mH)


def _turns(like: Tensor, angle: float) -> Tensor:
    """A skew-Hermitian matrix of random angles: diagonal, or for real ones an angle in two rows."""
    p = like.shape[0]
    if like.is_complex():
        angles = torch.empty_like(like.diagonal().real).uniform_(-angle, angle)
        return torch.diag(torch.complex(torch.zeros_like(angles), angles))
    rows = torch.arange(0, p - 1, 2, device=like.device)
    upper = torch.zeros_like(like)
    upper[rows, rows + 1] = torch.empty_like(upper[rows, rows + 1]).uniform_(-angle, angle)
    return upper - upper.mH
