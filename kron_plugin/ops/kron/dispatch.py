"""The backends of the product, and the one place where its arguments are checked."""

from math import prod
from typing import Iterable, List, Optional

import torch
from torch import Tensor

from ..backends import Backend, Backends, Problem
from ..cuda_kernels import obstacle
from . import cpu, cuda
from .reference import kron_matmul_reference


def _cuda_obstacle(problem: Problem) -> Optional[str]:
    return "it takes no batches of factors" if problem.is_batched else obstacle(problem)


BACKENDS = Backends(
    "kron_matmul",
    {
        "cuda": Backend("cuda", _cuda_obstacle, cuda.kron_matmul_cuda),
        "cpu": Backend("cpu", cpu.obstacle, cpu.kron_matmul_cpu),
        "reference": Backend(None, lambda problem: None, kron_matmul_reference),
    },
)


def kron_matmul(
    x: Tensor,  # shape: (..., ∏Q_f)
    factors: Iterable[Tensor],  # shape: (P_f, Q_f) each, or (..., P_f, Q_f)
    *,
    backend: str = "auto",
) -> Tensor:  # shape: (..., ∏P_f)
    """W x for every vector x, W = W_0 ⊗ … ⊗ W_{F-1}, in O(N Σ P_f) operations for square factors.

    Real x with complex factors gives a complex result. Axes of factors before the last two are
    batches: they are broadcast with each other and with the axes of x before its last, so that each
    vector has its own matrix; only the reference backend serves them. All backends are
    differentiable to any order but CUDA, which is once. On the CPU, "auto" leaves factors of more
    than 32 rows or columns to the reference.

    Raises:
        ValueError: there are no factors; they are not matrices, or do not fit the last axis of x;
            their batches do not fit; x is a single number; or there is no such backend.
        RuntimeError: the named backend cannot serve.
    """
    factors = list(factors)
    _check_factors(factors)
    is_batched = max([w.dim() for w in factors]) > 2
    _check_vectors(x, factors, is_batched)
    dtype = x.dtype
    for w in factors:
        dtype = torch.promote_types(dtype, w.dtype)
    x = x.to(dtype)
    # torch.compile does not know dtype.to_real.
    problem = Problem(x.device, x.real.dtype, x.is_complex(), is_batched)
    largest = max([int(size) for w in factors for size in w.shape[-2:]])
    if backend == "auto" and x.device.type == "cpu" and largest > cpu.MAX_SIZE:
        backend = "reference"
    return BACKENDS.run(backend, problem)(x, [w.to(dtype) for w in factors])


def _check_factors(factors: List[Tensor]) -> None:
    wrong = [_described(w) for w in factors if not isinstance(w, Tensor) or w.dim() < 2]
    if wrong or not factors:
        raise ValueError(
            "kron_matmul: factors must be one or more matrices of shape (P_f, Q_f), or batches of"
            f" them, not {', '.join(wrong) or 'none'}"
        )


def _check_vectors(x: Tensor, factors: List[Tensor], is_batched: bool) -> None:
    if x.dim() == 0:
        raise ValueError("kron_matmul: x must hold vectors, but is a single number")
    n_in = prod([w.shape[-1] for w in factors])
    if x.shape[-1] != n_in:
        sizes = ", ".join([f"{w.shape[-2]}x{w.shape[-1]}" for w in factors])
        raise ValueError(
            f"kron_matmul: factors {sizes} take vectors of size {n_in}, but x has {x.shape[-1]}"
        )
    if not is_batched:
        return
    batches = [tuple(w.shape[:-2]) for w in factors]
    try:
        torch.broadcast_shapes(x.shape[:-1], *batches)
    except RuntimeError as error:
        raise ValueError(
            f"kron_matmul: factors in batches of {batches} do not fit each other, or x of shape"
            f" {tuple(x.shape)}"
        ) from error


def _described(factor: object) -> str:
    if isinstance(factor, Tensor):
        return f"a tensor of shape {tuple(factor.shape)}"
    return f"a {type(factor).__name__}"
