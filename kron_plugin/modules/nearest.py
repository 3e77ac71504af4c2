"""The Kronecker product nearest to a matrix, in the Frobenius norm.

Van Loan and Pitsianis, "Approximation with Kronecker Products" (1993): pair the digits of rows and
columns factor by factor. In the resulting array W_0 ⊗ … ⊗ W_{F-1} is the outer product of the
factors as vectors, so the nearest product is the best approximation of rank one. For two factors
the array is a matrix and its SVD gives the optimum; for more it is a tensor.
"""

from typing import List

import torch
from torch import Tensor

from .factors import FactorSizes, FactorSpec, parse_factors

# Sweeps over all factors stop when one adds no more than this share of W.
TOLERANCE = 1e-12
MAX_SWEEPS = 200


@torch.no_grad()
def nearest_kronecker(
    matrix: Tensor,  # shape: (N, N)
    factors: FactorSpec,
) -> List[Tensor]:  # shape: (P_f, Q_f) each
    """Factors W_f that make ‖W − W_0 ⊗ … ⊗ W_{F-1}‖_F small, for a real or complex W.

    One or two factors are optimal. Three or more start from factors that are split off one after
    the other. Sweeps then fit each factor while the others are held, never get worse, and end in a
    local optimum. The factors have equal norms, and no gradient flows through them.

    Args:
        matrix: W.
        factors: sizes whose products are N, as `parse_factors` reads them.

    Raises:
        ValueError: W is not a square matrix, or sizes do not fit; the message suggests some.
    """
    if matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"matrix has shape {tuple(matrix.shape)}: must be a square matrix (N, N)")
    sizes = parse_factors(factors, matrix.shape[0])
    if len(sizes) == 1:
        return [matrix.clone()]
    exact = torch.complex128 if matrix.is_complex() else torch.float64
    tensor = _rearrange(matrix.to(exact), sizes)
    vectors = _split_off(tensor)
    if len(sizes) > 2:
        vectors = _sweep(tensor, vectors)
    scale = _project(tensor, vectors)
    each = scale.abs() ** (1 / len(sizes))
    vectors[0] = vectors[0] * scale.sgn()
    return [
        (each * v).reshape(size).to(matrix.dtype) for v, size in zip(vectors, sizes, strict=True)
    ]


def _rearrange(matrix: Tensor, sizes: FactorSizes) -> Tensor:  # shape: (P_0 Q_0, P_1 Q_1, …)
    """One axis for each factor, which joins its digit of the row and its digit of the column."""
    count = len(sizes)
    digits = matrix.reshape(*(p for p, _ in sizes), *(q for _, q in sizes))
    pairs = [axis for f in range(count) for axis in (f, count + f)]
    return digits.permute(pairs).reshape([p * q for p, q in sizes])


def _split_off(tensor: Tensor) -> List[Tensor]:
    """Unit vectors, one for each axis: the best outer product of the first axis and the rest, and
    so on. For two axes this is the optimum."""
    vectors, rest = [], tensor
    for size in tensor.shape[:-1]:
        u, _, vh = torch.linalg.svd(rest.reshape(size, -1), full_matrices=False)
        vectors.append(u[:, 0])
        rest = vh[0]
    return [*vectors, rest]


def _sweep(tensor: Tensor, vectors: List[Tensor]) -> List[Tensor]:
    """Alternating least squares: fit the unit vector of each axis in turn and hold the others."""
    vectors = list(vectors)
    total, captured = torch.linalg.vector_norm(tensor), _project(tensor, vectors).abs()
    for _ in range(MAX_SWEEPS):
        before = captured
        for axis in range(tensor.dim()):
            best = _project(tensor, vectors, axis)
            captured = torch.linalg.vector_norm(best)
            if captured > 0:
                vectors[axis] = best / captured
        if captured - before <= TOLERANCE * total:
            break
    return vectors


def _project(tensor: Tensor, vectors: List[Tensor], spare: int = -1) -> Tensor:
    """The tensor's inner product with unit vectors on all axes (a scalar), or on all but one."""
    left = tensor
    for axis in reversed(range(len(vectors))):
        if axis != spare:
            left = torch.tensordot(left, vectors[axis].conj(), dims=([axis], [0]))
    return left
