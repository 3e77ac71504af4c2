"""The product and its gradients by the CUDA kernels (cuda/*.cu)."""

from math import prod
from typing import List, Optional, Sequence, Tuple

import torch
from torch import Tensor

from ..activation import join, split
from ..backends import compute_type
from ..cuda_geometry import adjoint_shapes, arranged, geometry
from ..cuda_kernels import Kernels, aligned, kernels_for, launch
from ..operators import register, register_backward
from .flat import flatten, shapes_of, unflatten
from .reference import factor_gradients as factor_gradients_reference


def kron_matmul_cuda(x: Tensor, factors: Sequence[Tensor]) -> Tensor:
    """`kron_matmul` with its arguments, already checked."""
    is_complex = factors[0].is_complex()
    shapes = shapes_of(factors)
    rows = x.reshape(-1, x.shape[-1])
    rows = split(rows) if is_complex else rows
    flat = flatten(factors).to(compute_type(rows.dtype))
    y = _operator(rows, flat, shapes, is_complex)
    y = join(y) if is_complex else y
    return y.reshape(*x.shape[:-1], y.shape[-1])


def product(
    x: Tensor,  # shape: (M, C ∏Q_f)
    factors: Tensor,  # shape: (Σ P_f Q_f C,)
    shapes: List[int],
    is_complex: bool,
    adjoint: bool,
) -> Tensor:  # shape: (M, C ∏P_f); with P and Q the other way round for the adjoint
    """W x, or Wᴴ x, for vectors as they are stored: real parts, then imaginary parts."""
    kernels = kernels_for(shapes, x.dtype, is_complex)
    factors = arranged(kernels, factors, shapes, adjoint)
    shapes = adjoint_shapes(shapes) if adjoint else shapes
    y = x.new_empty(x.shape[0], prod(shapes[::2]) * kernels.parts)
    cut = geometry(kernels, "product", x.device, [shapes], x.shape[0])
    launch(
        kernels, "product", x.device, cut, steps=1, batch=x.shape[0], factors=factors,
        adjoint=int(adjoint), x=aligned(x), outputs=y,
    )  # fmt: skip
    return y


def factor_gradients(
    kernels: Kernels,
    g: Tensor,  # shape: (M, C ∏P_f)
    first: Optional[Tensor],  # shape: (m, C ∏Q_f)
    x: Tensor,  # shape: at least (M - m, C ∏Q_f)
    factors: Tensor,  # shape: (Σ P_f Q_f C,)
    shapes: Sequence[int],
) -> Tensor:  # shape: (Σ P_f Q_f C,), float64
    """For y = W x from g = dL/dy, summed over M rows. The input rows are `first`, then x.

    For 2x2 factors one kernel sums, block by block and then over the blocks, always in the same
    order. For other factors these are matrix products.
    """
    if kernels.kind == "butterfly":
        cut = geometry(kernels, "gradient", g.device, [shapes], g.shape[0])
        sums = torch.empty(cut.grid, factors.numel(), dtype=factors.dtype, device=g.device)
        rows = 0 if first is None else first.shape[0]
        launch(
            kernels, "gradient", g.device, cut, steps=1, batch=g.shape[0], initial_rows=rows,
            initial=first, factors=aligned(factors), outputs=aligned(x), delta=aligned(g),
            d_factors=sums,
        )  # fmt: skip
        return sums.sum(0, dtype=torch.float64)
    x = x if first is None else torch.cat([first.to(x.dtype), x])[: g.shape[0]]
    g, x = g.to(factors.dtype), x.to(factors.dtype)
    is_complex = kernels.parts == 2
    g, x = (join(g), join(x)) if is_complex else (g, x)
    matrices = unflatten(factors, shapes, is_complex)
    return flatten(factor_gradients_reference(g, x, matrices)).double()


def _forward(x: Tensor, factors: Tensor, shapes: List[int], is_complex: bool) -> Tensor:
    return product(x, factors, shapes, is_complex, adjoint=False)


def _forward_fake(x, factors, shapes, is_complex):
    return x.new_empty(x.shape[0], prod(shapes[::2]) * (2 if is_complex else 1))


def _backward(
    g: Tensor, x: Tensor, factors: Tensor, shapes: List[int], is_complex: bool
) -> Tuple[Tensor, Tensor]:
    kernels = kernels_for(shapes, x.dtype, is_complex)
    d_factors = factor_gradients(kernels, g, None, x, factors, shapes).to(factors.dtype)
    return product(g, factors, shapes, is_complex, adjoint=True), d_factors


def _backward_fake(g, x, factors, shapes, is_complex):
    return torch.empty_like(x), torch.empty_like(factors)


def _setup_context(ctx, inputs, output) -> None:
    x, factors, ctx.shapes, ctx.is_complex = inputs
    ctx.save_for_backward(x, factors)


def _differentiate(ctx, g):
    return *_backward_operator(g, *ctx.saved_tensors, ctx.shapes, ctx.is_complex), None, None


_backward_operator = register_backward("kron_matmul", "cuda", _backward, _backward_fake)
_operator = register("kron_matmul", "cuda", _forward, _forward_fake, _differentiate, _setup_context)
