"""The spectrum of a Kronecker product, made from its factors, and the time scales that it means."""

from math import inf, pi, prod
from typing import List, NamedTuple, Sequence

import torch
from torch import Tensor

from .factors import format_factors

MOST = 4096  # values that are kept of a spectrum


class Spectrum(NamedTuple):
    """Eigenvalues and singular values, in double precision; of more than MOST of them MOST that
    are drawn at random."""

    eigenvalues: Tensor  # shape: (min(N, MOST),), complex
    singular_values: Tensor  # shape: (min(N, MOST),)


@torch.no_grad()
def spectrum(factors: Sequence[Tensor]) -> Spectrum:
    """The spectrum of W_0 ⊗ … ⊗ W_{F-1}: the products of the factors' values. One factor alone may
    be any square matrix.

    Raises:
        ValueError: a factor is rectangular, and has no eigenvalues.
    """
    sizes = tuple((w.shape[0], w.shape[1]) for w in factors)
    if any(p != q for p, q in sizes):
        raise ValueError(
            f"factors={format_factors(sizes)!r}: rectangular ones have no eigenvalues, from which"
            " those of W could be made"
        )
    exact = [w.to(torch.promote_types(w.dtype, torch.float64)) for w in factors]
    return Spectrum(
        _products([torch.linalg.eigvals(w) for w in exact]),
        _products([torch.linalg.svdvals(w) for w in exact]),
    )


def _products(values: List[Tensor]) -> Tensor:
    """All products of one number of each list, or MOST random ones."""
    if prod(len(v) for v in values) <= MOST:
        product = values[0]
        for more in values[1:]:
            product = torch.kron(product, more)
        return product
    generator = torch.Generator().manual_seed(0)
    drawn = [v[torch.randint(len(v), (MOST,), generator=generator)] for v in values]
    return torch.stack(drawn).prod(0)


def memory_steps(eigenvalues: Tensor) -> Tensor:
    """In how many steps h_t = λ h_{t-1} shrinks by a factor of e: −1 / log |λ|, infinity if it
    does not shrink."""
    logs = eigenvalues.abs().log()
    return torch.where(logs < 0, -1 / logs, inf)


def turn_steps(eigenvalues: Tensor) -> Tensor:
    """In how many steps h_t = λ h_{t-1} turns once: 2π / |θ| for the phase θ of λ."""
    return 2 * pi / eigenvalues.angle().abs()
