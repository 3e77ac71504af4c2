"""The product and its gradients by the CPU kernel (native/product.cpp)."""

import ctypes
from math import prod
from typing import List, Optional, Sequence, Tuple

import torch
from torch import Tensor

from ..backends import Problem
from ..checks import check_shape, require
from ..native import kernel, memory
from ..operators import register, register_backward
from .flat import Layout, flatten, shapes_of, unflatten
from .reference import factor_gradients, kron_matmul_reference
from .solve import inverses, solve

# Auto leaves larger factors to the reference, whose matrix products are faster for them.
MAX_SIZE = 32

# Numbers in a batch of vectors from which the factors' gradients are solved for: the inverses take
# about as long as the sums over all stages for so many.
SOLVED_FROM = 1 << 14


class _Call(ctypes.Structure):
    """`struct Call` of product.cpp."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("threads", "batch", "count")),
        *((name, ctypes.c_void_p) for name in ("shapes", "factors")),
        ("adjoint", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("x", "y")),
        ("shortcut", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("d_y", "d_x", "d_factors", "interpreter")),
    ]


def obstacle(problem: Problem) -> Optional[str]:
    """Why this backend cannot serve, or None. Compiles the kernel to find out."""
    if problem.is_batched:
        return "it takes no batches of factors"
    if not problem.dtype.is_floating_point:
        return f"it takes no {problem.dtype}"
    return kernel.obstacle("product", problem)


def kron_matmul_cpu(x: Tensor, factors: Sequence[Tensor]) -> Tensor:
    """`kron_matmul` with its arguments, already checked.

    Half precision is computed in float32. The bits of the result do not depend on the number of
    threads; the gradients of factors are deterministic for a given one.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    rows = x.to(dtype).reshape(-1, x.shape[-1])
    flat = flatten([w.to(dtype) for w in factors])
    y = _operator(rows, flat, list(shapes_of(factors)), dtype.is_complex, kernel.thread_count())
    return y.reshape(*x.shape[:-1], y.shape[-1]).to(x.dtype)


def _run(
    function: str,
    factors: Tensor,  # shape: (Σ P_f Q_f C,)
    shapes: List[int],
    is_complex: bool,
    threads: int,
    **fields,
) -> None:
    """One of the kernel's two passes; `fields` are those that only one pass has."""
    kernel.run(
        "product",
        function,
        _Call(),
        factors.dtype,
        is_complex,
        threads=threads,
        count=len(shapes) // 2,
        shapes=torch.tensor(shapes),
        factors=factors,
        **fields,
    )


def _check(
    factors: Tensor, shapes: List[int], is_complex: bool, **vectors: Tuple[Tensor, int]
) -> None:
    """The kernel reads as many numbers as sizes say. `vectors`: a batch and its size, by name."""
    sizes = [p * q for p, q in zip(shapes[::2], shapes[1::2], strict=True)]
    message = "shapes {} must be P_0, Q_0, P_1, …"
    require("kron_matmul", sizes != [] and min(shapes) >= 0, message, shapes)
    check_shape("kron_matmul", "factors", factors, (sum(sizes) * (2 if is_complex else 1),))
    is_real = factors.dtype in (torch.float32, torch.float64)
    require("kron_matmul", is_real, "factors are {}", factors.dtype)
    dtype = torch.promote_types(factors.dtype, torch.complex32) if is_complex else factors.dtype
    batch = next(iter(vectors.values()))[0].shape[:1]
    for name, (rows, size) in vectors.items():
        check_shape("kron_matmul", name, rows, (*batch, size))
        require("kron_matmul", rows.dtype == dtype, "{} is {}, not {}", name, rows.dtype, dtype)


def _product(
    x: Tensor,  # shape: (M, ∏Q_f); for the adjoint (M, ∏P_f)
    factors: Tensor,  # shape: (Σ P_f Q_f C,)
    shapes: List[int],
    is_complex: bool,
    threads: int,
    adjoint: bool,
) -> Tensor:  # shape: (M, ∏P_f); for the adjoint (M, ∏Q_f)
    size, n = prod(shapes[int(not adjoint) :: 2]), prod(shapes[int(adjoint) :: 2])
    _check(factors, shapes, is_complex, x=(x, size))
    y = memory.empty(x, (x.shape[0], n))
    if not (x.numel() and y.numel()):
        return y.zero_()
    given = (factors, shapes, is_complex, threads)
    _run("forward", *given, batch=x.shape[0], adjoint=int(adjoint), x=x, y=y)
    return y


def _forward(
    x: Tensor, factors: Tensor, shapes: List[int], is_complex: bool, threads: int
) -> Tensor:
    return _product(x, factors, shapes, is_complex, threads, adjoint=False)


def _forward_fake(x, factors, shapes, is_complex, threads):
    return x.new_empty(x.shape[0], prod(shapes[::2]))


def _backward(
    d_y: Tensor,
    x: Tensor,
    factors: Tensor,
    shapes: List[int],
    is_complex: bool,
    threads: int,
    need_d_x: bool,
    need_d_factors: bool,
) -> Tuple[Tensor, Tensor]:
    """The gradients of x and of the factors, empty where they are not needed."""
    given = (factors, shapes, is_complex, threads)
    if not need_d_factors:
        d_x = _product(d_y, *given, adjoint=True) if need_d_x else x.new_empty(0)
        return d_x, factors.new_empty(0)
    sizes = prod(shapes[::2]), prod(shapes[1::2])
    _check(factors, shapes, is_complex, d_y=(d_y, sizes[0]), x=(x, sizes[1]))
    d_x = memory.empty(x, x.shape if need_d_x else (0,))
    if not (x.numel() and d_y.numel()):
        return d_x.zero_(), torch.zeros_like(factors)
    layout = Layout(tuple(shapes), (len(shapes) // 2,), is_complex)
    is_worth = x.numel() >= SOLVED_FROM
    found, (usable,) = inverses(factors, layout) if is_worth else ([], [False])
    sums = torch.empty(factors.shape, dtype=torch.float64)
    _run(
        "backward",
        *given,
        batch=x.shape[0],
        shortcut=int(usable),
        x=x,
        d_y=d_y,
        d_x=d_x,
        d_factors=sums,
    )
    if usable:
        solve(sums, found, layout, [True])
    return d_x, sums.to(factors.dtype)


def _backward_fake(d_y, x, factors, shapes, is_complex, threads, need_d_x, need_d_factors):
    d_x = x.new_empty(x.shape) if need_d_x else x.new_empty(0)
    return d_x, torch.empty_like(factors) if need_d_factors else factors.new_empty(0)


def _setup_context(ctx, inputs, output) -> None:
    x, factors, *ctx.settings = inputs
    ctx.save_for_backward(x, factors)


def _differentiate(ctx, d_y):
    """By expressions of torch if they are to be differentiated once more."""
    x, factors = ctx.saved_tensors
    shapes, is_complex, _ = ctx.settings
    need_d_x, need_d_factors = ctx.needs_input_grad[:2]
    if torch.is_grad_enabled():
        matrices = unflatten(factors, shapes, is_complex)
        d_x = kron_matmul_reference(d_y, [w.mH for w in matrices]) if need_d_x else None
        d_factors = flatten(factor_gradients(d_y, x, matrices)) if need_d_factors else None
    else:
        given = (d_y, x, factors, *ctx.settings, need_d_x, need_d_factors)
        d_x, d_factors = _backward_operator(*given)
    return d_x if need_d_x else None, d_factors if need_d_factors else None, None, None, None


_backward_operator = register_backward("kron_matmul", "cpu", _backward, _backward_fake)
_operator = register("kron_matmul", "cpu", _forward, _forward_fake, _differentiate, _setup_context)
