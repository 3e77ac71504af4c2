"""What the recurrences share in their arguments: three forms of input, and types."""

from functools import wraps
from typing import Any, Callable, Optional, Tuple

import torch
from torch import Tensor

from .backends import compute_type

MAX_FEATURES = 8  # that a fused kernel projects itself
MAX_ONE_HOT = 512  # symbols that are counted by a matrix product
ONE_HOT_ENTRIES = 1 << 25  # of its matrix at a time


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


def input_gradient(
    x: Tensor,  # shape: (T, B, …), one of the forms that `project` takes
    weight: Optional[Tensor],  # shape: (I, W)
    delta: Tensor,  # shape: (T, B, W)
    d_x: Tensor,
) -> Optional[Tensor]:  # shape: (I, W), float64
    """From delta = dL/du: fills d_x unless it is empty, and returns the weight's gradient, if there
    is a weight. Sums are made in a fixed order, also on a GPU."""
    if weight is None:
        if d_x.numel() and d_x.data_ptr() != delta.data_ptr():
            d_x.copy_(delta)
        return None
    rows = delta.to(compute_type(delta.dtype)).flatten(0, 1)
    if not x.is_floating_point():
        return _token_sums(x.flatten().long(), rows, weight.shape[0])
    if d_x.numel():
        d_x.copy_(delta @ weight.to(delta.dtype).T)
    return (x.to(rows.dtype).flatten(0, 1).T @ rows).double()


def _token_sums(
    tokens: Tensor,  # shape: (M,)
    rows: Tensor,  # shape: (M, W)
    symbols: int,
) -> Tensor:  # shape: (symbols, W), float64
    """The sum of the rows of each symbol, in a fixed order: torch's `embedding_dense_backward` has
    none on a GPU, a matrix product has, and `index_put_` sorts. Tokens that are no symbol, which
    made states NaN (cuda/step.cuh), are passed over."""
    is_known = (tokens >= 0) & (tokens < symbols)
    rows = torch.where(is_known.unsqueeze(1), rows, 0)
    sums = rows.new_zeros(symbols, rows.shape[1], dtype=torch.float64)
    if symbols > MAX_ONE_HOT:
        return sums.index_put_((torch.where(is_known, tokens, 0),), rows.double(), accumulate=True)
    each = torch.arange(symbols, device=rows.device).unsqueeze(1)
    length = ONE_HOT_ENTRIES // symbols
    for some, part in zip(tokens.split(length), rows.split(length), strict=True):
        sums += (each == some).to(rows.dtype) @ part
    return sums


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
