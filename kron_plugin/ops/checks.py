"""Checks of the arguments of recurrences; each raises an error that names the argument.

They run twice: on a user's arguments; and in the operators of the fused backends, which anybody can
call, on every buffer that a kernel will read.
"""

from typing import Any, Callable, Dict, Optional, Sequence, Set

import torch
from torch import Tensor
from torch._subclasses import FakeTensor

from .backends import compute_type

INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)  # of lengths


def require(operation: str, condition: bool, message: str, *values) -> None:
    """Raise a ValueError that begins with the operation's name unless the condition holds.

    The values are formatted only when the message is needed: formatting a size makes it a constant
    of a traced graph.
    """
    if not condition:
        raise ValueError(f"{operation}: {message.format(*values)}")


_passed: Set[tuple] = set()  # kinds of arguments
MAX_PASSED = 4096


def once(check: Callable, cell: Any, tensors: Sequence[Optional[Tensor]], settings: tuple) -> None:
    """Call check(cell) unless it has passed before with the same settings, and with tensors of the
    same shapes, types and devices, on which alone it depends.

    A traced graph has shapes that are no numbers, and must not depend on what passed before.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return check(cell)
    kinds = [None if t is None else (t.shape, t.dtype, t.device) for t in tensors]
    kind = (check.__qualname__, cell.name, settings, *kinds)
    try:
        known = kind in _passed
    except TypeError:  # a symbolic shape
        return check(cell)
    if not known:
        check(cell)
        if len(_passed) >= MAX_PASSED:
            _passed.clear()
        _passed.add(kind)


def check_shape(operation: str, name: str, tensor: Tensor, expected: tuple) -> None:
    """Raise a ValueError that names the argument unless it has the expected shape."""
    have = tuple(tensor.shape)
    require(operation, have == expected, "{} has shape {}, expected {}", name, have, expected)


def check_device(operation: str, name: str, tensor: Tensor, h0: Tensor) -> None:
    """Raise a ValueError unless the tensor is on the device of h0."""
    message = "{} is on another device than h0, {} and not {}"
    require(operation, tensor.device == h0.device, message, name, tensor.device, h0.device)


def check_array(
    operation: str,
    name: str,
    tensor: Optional[Tensor],
    expected: tuple,
    h0: Tensor,
    computed: bool = False,
) -> None:
    """Raise a ValueError unless an array, if given, has the expected shape and is like h0.

    It must be on the same device and have h0's type or, with `computed`, the type of computation.
    """
    if tensor is None:
        return
    check_shape(operation, name, tensor, expected)
    check_device(operation, name, tensor, h0)
    dtype = compute_type(h0.dtype) if computed else h0.dtype
    message = "{} has another type than h0, {} and not {}"
    require(operation, tensor.dtype == dtype, message, name, tensor.dtype, dtype)


def is_kept(
    operation: str, name: str, tensor: Tensor, expected: tuple, h0: Tensor, computed: bool = False
) -> bool:
    """Whether states were kept for the backward pass: an empty array means that they were not.

    Raises:
        ValueError: it is neither empty nor passes `check_array`.
    """
    if tensor.numel():
        check_array(operation, name, tensor, expected, h0, computed)
    return tensor.numel() > 0


def check_input(operation: str, x: Tensor, weight: Optional[Tensor], width: int) -> None:
    """Raise a ValueError unless x and weight are one of the forms that `project` takes."""
    have = tuple(x.shape)
    if weight is None:
        message = "x has shape {}, expected (T, B, {}) when no weight is given"
        require(operation, x.dim() == 3 and x.shape[2] == width, message, have, width)
        return
    shape = tuple(weight.shape)
    fits = len(shape) == 2 and shape[1] == width and shape[0] >= 1
    message = "weight has shape {}, expected (I, {}), I at least 1"
    require(operation, fits, message, shape, width)
    fits = x.dim() == 3 and x.shape[2] == shape[0] if x.is_floating_point() else x.dim() == 2
    fits = fits and not x.is_complex() and x.dtype != torch.bool
    message = "x has shape {} and type {}; with weight {} it must be features (T, B, {}) or integer"
    require(operation, fits, f"{message} tokens (T, B)", have, x.dtype, shape, shape[0])


def check_alike(operation: str, h0: Tensor, tensors: Dict[str, Optional[Tensor]]) -> None:
    """Raise a ValueError unless h0 holds real numbers and the others are like it.

    They must have its type and be on its device. Tokens, an "x" of integers with a "weight", may
    have any type.
    """
    message = "h0 must hold real numbers, not {}"
    require(operation, h0.is_floating_point(), message, h0.dtype)
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        check_device(operation, name, tensor, h0)
        is_tokens = name == "x" and tensors["weight"] is not None and not tensor.is_floating_point()
        message, fits = "{} has another type than h0, {} and not {}", tensor.dtype == h0.dtype
        require(operation, fits or is_tokens, message, name, tensor.dtype, h0.dtype)


def check_factors(operation: str, factors: Sequence[Tensor], h0: Tensor) -> None:
    """Raise a ValueError unless factors are on h0's device, and have its type or the type of
    computation."""
    fitting = [h0.dtype, compute_type(h0.dtype)]
    fitting.append(torch.promote_types(fitting[1], torch.complex64))
    for factor in factors:
        check_device(operation, "a factor", factor, h0)
        message = "a factor has the type {}, which does not fit a state of {}"
        require(operation, factor.dtype in fitting, message, factor.dtype, h0.dtype)


def check_lengths(operation: str, lengths: Optional[Tensor], x: Tensor) -> None:
    """Raise a ValueError unless lengths, if given, are integers, one for each sequence of x.

    Their values are not checked: no backend uses them to address memory.
    """
    if lengths is None:
        return
    check_shape(operation, "lengths", lengths, (x.shape[1],))
    fits = lengths.dtype in INTEGERS
    require(operation, fits, "lengths must be integers, not {}", lengths.dtype)


def checked_lengths(operation: str, lengths: Optional[Tensor], x: Tensor) -> Optional[Tensor]:
    """Lengths as int64, which holds any step, on the device of x.

    Raises:
        ValueError: they are not from 1 to T, one per sequence.
    """
    check_lengths(operation, lengths, x)
    if lengths is None:
        return None
    lengths = lengths.long()
    # Values are not checked in a traced graph, nor on a GPU, because that would wait for it.
    traced = torch.compiler.is_compiling() or isinstance(lengths, FakeTensor)
    if lengths.device.type == "cpu" and not traced:
        fits = bool(((lengths >= 1) & (lengths <= x.shape[0])).all())
        message = "lengths must be between 1 and the {} steps of x"
        require(operation, fits, message, x.shape[0])
    return lengths.to(x.device)
