"""What the arguments of all recurrences have in common: three forms of input, and types."""

from functools import wraps
from typing import Any, Callable, Optional, Tuple

import torch
from torch import Tensor

from .backends import compute_type

MAX_FEATURES = 8  # the most that every fused kernel projects itself
MAX_ONE_HOT = 512  # the most symbols that are summed by a matrix product
ONE_HOT_ENTRIES = 1 << 25  # entries of its matrix at a time


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
    """x with zeros beyond each length, whatever is there.

    A zero gradient times a NaN or an infinity is NaN, and a token may have no row.
    """
    if lengths is None:
        return x
    x = x if x.is_floating_point() else x.long()
    live = torch.arange(x.shape[0], device=x.device).unsqueeze(1) < lengths
    live = live.unsqueeze(2) if x.dim() == 3 else live
    return torch.where(live, x, torch.zeros((), dtype=x.dtype, device=x.device))


def prepared(
    x: Tensor, weight: Optional[Tensor], lengths: Optional[Tensor], most: int
) -> Tuple[Tensor, Optional[Tensor]]:
    """The input for a fused kernel: a matrix product projects more than `most` features faster.

    Dense x stays as it is: the kernels themselves ignore inputs beyond a length.
    """
    if weight is None:
        return x, None
    x = within_lengths(x, lengths)
    if not x.is_floating_point() or weight.shape[0] <= most:
        return x, weight
    return x @ weight, None


def input_gradient(
    x: Tensor,  # shape: (T, B, …), one of the forms that `project` takes
    weight: Optional[Tensor],  # shape: (I, W)
    delta: Tensor,  # shape: (T, B, W)
    d_x: Tensor,
) -> Optional[Tensor]:  # shape: (I, W), float64
    """From delta = dL/du: fills d_x unless it is empty, and returns the weight's gradient, if there
    is a weight. The order of sums is fixed, also on a GPU."""
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
    """The sum of the rows of each symbol, in a fixed order. torch's `embedding_dense_backward` has
    no fixed order on a GPU; a matrix product has one, and `index_put_` sorts. Tokens that are not
    symbols are ignored: they made states NaN (cuda/step.cuh)."""
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
    """A recurrence for float32 and float64, extended to half precision as in the CUDA kernels:
    results are computed in float32 and stored in half precision."""

    @wraps(run)
    def call(*args):
        bias = args[3]
        if bias.dtype == compute_type(bias.dtype):
            return run(*args)
        return _cast(run(*(_cast(arg, torch.float32) for arg in args)), bias.dtype)

    return call


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """A tensor of real numbers, or several, in another type; anything else unchanged."""
    if type(value) in (list, tuple):  # no layout of factors
        return type(value)(_cast(item, dtype) for item in value)
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
