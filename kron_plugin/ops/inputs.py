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
        d_weight += torch.ops.aten.embedding_dense_backward(
            rows, x.flatten(), weight.shape[0], -1, False
        )
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
        weight.dim() == 2 and weight.shape[1] == width,
        f"weight has shape {tuple(weight.shape)}, expected (I, {width})",
    )
    fits = x.dim() == 3 and x.shape[2] == weight.shape[0] if x.is_floating_point() else x.dim() == 2
    require(
        operation,
        fits,
        f"x has shape {have} and type {x.dtype}; with weight {tuple(weight.shape)} it must be"
        f" features (T, B, {weight.shape[0]}) or integer tokens (T, B)",
    )


def check_types(
    operation: str, tensors: Dict[str, Optional[Tensor]], name: str, dtype: torch.dtype
) -> None:
    """Raise a ValueError unless all floating tensors have the type of the one called `name`."""
    for other, tensor in tensors.items():
        require(
            operation,
            tensor is None or not tensor.is_floating_point() or tensor.dtype == dtype,
            f"{other} has another type than {name}, {dtype}",
        )


def check_factor_types(operation: str, factors: Sequence[Tensor], dtype: torch.dtype) -> None:
    """Raise a ValueError unless factors have the type of a state, or that it is computed with."""
    fitting = [dtype, compute_type(dtype)]
    fitting.append(torch.promote_types(fitting[1], torch.complex64))
    for factor in factors:
        require(
            operation,
            factor.dtype in fitting,
            f"a factor has the type {factor.dtype}, which does not fit a state of {dtype}",
        )


def checked_lengths(operation: str, lengths: Optional[Tensor], x: Tensor) -> Optional[Tensor]:
    """Lengths as int64, which holds any step.

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
    return lengths
