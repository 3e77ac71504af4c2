"""What the recurrences share in their arguments: three forms of input, and types."""

from functools import wraps
from typing import Any, Callable, Optional, Tuple

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


def within_lengths(
    x: Tensor,  # shape: (T, B) or (T, B, …)
    lengths: Optional[Tensor],  # shape: (B,)
) -> Tensor:
    """x with zeros beyond each length, whatever stands there.

    A gradient of zero is none where it meets a NaN or an infinity; and a token may have no row.
    """
    if lengths is None:
        return x
    x = x if x.is_floating_point() else x.long()
    live = torch.arange(x.shape[0], device=x.device).unsqueeze(1) < lengths
    live = live.unsqueeze(2) if x.dim() == 3 else live
    return torch.where(live, x, torch.zeros((), dtype=x.dtype, device=x.device))


def prepared(
    x: Tensor, weight: Optional[Tensor], lengths: Optional[Tensor]
) -> Tuple[Tensor, Optional[Tensor]]:
    """What a fused kernel is given: many features are faster projected by a matrix product.

    Dense x is given as it is: the kernels pass over what stands beyond a length themselves.
    """
    if weight is None:
        return x, None
    x = within_lengths(x, lengths)
    if not x.is_floating_point() or weight.shape[0] <= MAX_FEATURES:
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
