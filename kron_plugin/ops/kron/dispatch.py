"""The backends of the product, and the one place where its arguments are checked."""

from functools import reduce
from math import prod
from typing import Sequence

import torch
from torch import Tensor

from ..backends import Backend, Backends, Problem
from ..cuda_kernels import obstacle
from . import cuda
from .reference import kron_matmul_reference

_BACKENDS = Backends(
    "kron_matmul",
    {
        "cuda": Backend("cuda", obstacle, cuda.kron_matmul_cuda),
        "reference": Backend(None, lambda problem: None, kron_matmul_reference),
    },
)


def kron_matmul(
    x: Tensor,  # shape: (..., ∏Q_f)
    factors: Sequence[Tensor],  # shape: (P_f, Q_f) each
    *,
    backend: str = "auto",
) -> Tensor:  # shape: (..., ∏P_f)
    """W x for every vector x, W = W_0 ⊗ … ⊗ W_{F-1}, in O(N Σ P_f) operations for square factors.

    Real x may meet complex factors; the result then is complex. The reference backend is
    differentiable to any order, the CUDA one once.

    Raises:
        ValueError: the factors are none, no matrices, or do not fit the last axis of x; or there is
            no such backend.
        RuntimeError: the named backend cannot serve.
    """
    if not factors or any(w.dim() != 2 for w in factors):
        raise ValueError("kron_matmul: factors must be one or more matrices of shape (P_f, Q_f)")
    n_in = prod(w.shape[1] for w in factors)
    if x.shape[-1] != n_in:
        sizes = ", ".join(f"{w.shape[0]}x{w.shape[1]}" for w in factors)
        raise ValueError(
            f"kron_matmul: factors {sizes} take vectors of size {n_in}, but x has {x.shape[-1]}"
        )
    dtype = reduce(torch.promote_types, (w.dtype for w in factors), x.dtype)
    factors = [w.to(dtype) for w in factors]
    problem = Problem(x.device, dtype.to_real(), dtype.is_complex)
    return _BACKENDS.run(backend, problem)(x.to(dtype), factors)
