"""What the recurrences share in their arguments: three forms of input, types and lengths."""

from functools import wraps
from typing import Any, Callable, Dict, Optional, Sequence, Tuple

import torch
from torch import Tensor

from .backends import compute_type

MAX_FEATURES = 8  # that a fused kernel projects itself


def project(x: Tensor, weight: Optional[Tensor]) -> Tensor:
    """The input's share u_t of every pre-activation, shape (T, B, W)."""
    if weight is None:
        return x
    if x.is_floating_point():
        return x @ weight
    return torch.nn.functional.embedding(x.long(), weight)


def project_wide(x: Tensor, weight: Optional[Tensor]) -> Tuple[Tensor, Optional[Tensor]]:
    """What a fused kernel is given: many features are faster projected by a matrix product."""
    if weight is None or not x.is_floating_point() or weight.shape[0] <= MAX_FEATURES:
        return x, weight
    return x @ weight, None


def add_input_gradient(
    x: Tensor,  # shape: (T, B, …), one of the forms that `project` takes
    weight: Optional[Tensor],  # shape: (I, W)
    delta: Tensor,  # shape: (T, B, W)
    d_x: Tensor,
    d_weight: Tensor,  # shape: (I, W), float64
) -> None:
    """From delta = dL/du: fills d_x unless it is empty, and adds to d_weight."""
    if weight is None:
        if d_x.numel() and d_x.data_ptr() != delta.data_ptr():
            d_x.copy_(delta)
        return
    rows = delta.to(compute_type(delta.dtype)).flatten(0, 1)
    if not x.is_floating_point():
        symbols, tokens = weight.shape[0], x.flatten().long()
        # -1 is passed over: tokens without a row made states NaN (cuda/step.cuh), but may not be
        # read or written by.
        tokens = torch.where((tokens >= 0) & (tokens < symbols), tokens, -1)
        d_weight += torch.ops.aten.embedding_dense_backward(rows, tokens, symbols, -1, False)
        return
    d_weight += x.to(rows.dtype).flatten(0, 1).T @ rows
    if d_x.numel():
        d_x.copy_(delta @ weight.to(delta.dtype).T)


def in_single(run: Callable) -> Callable:
    """A recurrence that knows float32 and float64, made to take half precision as the CUDA kernels
    do: results are stored in it and computed in float32."""

    @wraps(run)
    def call(*args):
        bias = args[2]
        if bias.dtype == compute_type(bias.dtype):
            return run(*args)
        return _cast(run(*(_cast(arg, torch.float32) for arg in args)), bias.dtype)

    return call


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """The real numbers of a tensor, or of several, in another type; anything else as it is."""
    if isinstance(value, (list, tuple)):
        return type(value)(_cast(item, dtype) for item in value)
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def require(operation: str, condition: bool, message: str) -> None:
    """Raise a ValueError that begins with the operation's name unless the condition holds."""
    if not condition:
        raise ValueError(f"{operation}: {message}")


def check_shape(operation: str, name: str, tensor: Tensor, expected: tuple) -> None:
    """Raise a ValueError that names the argument unless it has the expected shape."""
    have = tuple(tensor.shape)
    require(operation, have == expected, f"{name} has shape {have}, expected {expected}")


def check_steps(operation: str, x: Tensor) -> None:
    """Raise a ValueError unless x has axes of time and batch, and a first step."""
    have = tuple(x.shape)
    fits = x.dim() >= 2 and x.shape[0] >= 1
    require(operation, fits, f"x needs at least one step, has shape {have}")


def check_input(operation: str, x: Tensor, weight: Optional[Tensor], width: int) -> None:
    """Raise a ValueError unless x and weight are one of the forms that `project` takes."""
    have = tuple(x.shape)
    if weight is None:
        require(
            operation,
            x.dim() == 3 and x.shape[2] == width,
            f"x has shape {have}, expected (T, B, {width}) when no weight is given",
        )
        return
    require(
        operation,
        weight.dim() == 2 and weight.shape[1] == width and weight.shape[0] >= 1,
        f"weight has shape {tuple(weight.shape)}, expected (I, {width}), I at least 1",
    )
    fits = x.dim() == 3 and x.shape[2] == weight.shape[0] if x.is_floating_point() else x.dim() == 2
    fits = fits and not x.is_complex()
    require(
        operation,
        fits,
        f"x has shape {have} and type {x.dtype}; with weight {tuple(weight.shape)} it must be"
        f" features (T, B, {weight.shape[0]}) or integer tokens (T, B)",
    )


def check_alike(operation: str, h0: Tensor, tensors: Dict[str, Optional[Tensor]]) -> None:
    """Raise a ValueError unless h0 holds real numbers and the others are like it.

    They are when they have its type and lie on its device; tokens, an "x" of integers beside a
    "weight", may have any type.
    """
    require(operation, h0.is_floating_point(), f"h0 must hold real numbers, not {h0.dtype}")
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        check_device(operation, name, tensor, h0)
        is_tokens = name == "x" and tensors["weight"] is not None and not tensor.is_floating_point()
        require(
            operation,
            is_tokens or tensor.dtype == h0.dtype,
            f"{name} has another type than h0, {tensor.dtype} and not {h0.dtype}",
        )


def check_device(operation: str, name: str, tensor: Tensor, h0: Tensor) -> None:
    """Raise a ValueError unless the tensor is where h0 is."""
    require(
        operation,
        tensor.device == h0.device,
        f"{name} is on another device than h0, {tensor.device} and not {h0.device}",
    )


def check_factors(operation: str, factors: Sequence[Tensor], h0: Tensor) -> None:
    """Raise a ValueError unless factors are on h0's device, and of its type or that it is computed
    with."""
    fitting = [h0.dtype, compute_type(h0.dtype)]
    fitting.append(torch.promote_types(fitting[1], torch.complex64))
    for factor in factors:
        check_device(operation, "a factor", factor, h0)
        require(
            operation,
            factor.dtype in fitting,
            f"a factor has the type {factor.dtype}, which does not fit a state of {h0.dtype}",
        )


def checked_lengths(operation: str, lengths: Optional[Tensor], x: Tensor) -> Optional[Tensor]:
    """Lengths as int64, which holds any step, where x is.

    Raises:
        ValueError: they are not from 1 to T, one a sequence.
    """
    if lengths is None:
        return None
    steps, batch = x.shape[:2]
    check_shape(operation, "lengths", lengths, (batch,))
    is_integral = lengths.dtype in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
    require(operation, is_integral, f"lengths must be integers, not {lengths.dtype}")
    lengths = lengths.long()
    # Values are not looked at in a traced graph, nor on a device, which would have to be waited
    # for; the backends read no memory by them.
    unseen = torch.compiler.is_compiling() or lengths.device.type != "cpu"
    require(
        operation,
        unseen or bool(((lengths >= 1) & (lengths <= steps)).all()),
        f"lengths must be between 1 and the {steps} steps of x",
    )
    return lengths.to(x.device)
