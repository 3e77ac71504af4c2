"""Checks of layers' arguments: an error names the argument and what it must be."""

from numbers import Real
from operator import index
from typing import Any, Dict, Optional, Sequence, Union

import numpy as np
import torch

PARAMETER_TYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def whole(name: str, value: Any, least: int = 1, unit: str = "") -> int:
    """The value as a Python int.

    Raises:
        TypeError: it is not a whole number.
        ValueError: it is less than `least`.
    """
    try:
        if isinstance(value, bool):
            raise TypeError
        number = index(value)
    except TypeError:
        kind = type(value).__name__
        raise TypeError(f"{name}={value!r}: must be a whole number, not {kind}") from None
    if number < least:
        raise ValueError(f"{name}={number}: must be at least {least} {unit}".rstrip())
    return number


def real(name: str, value: Any, most: float, bounds: str) -> float:
    """The value as a Python float.

    Args:
        bounds: the range from 0 to `most` in words, for the message.

    Raises:
        TypeError: it is not a number.
        ValueError: it is not from 0 to `most`.
    """
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if not is_number:
        raise TypeError(f"{name}={value!r}: must be a number, not {type(value).__name__}")
    if not 0 <= value <= most:
        raise ValueError(f"{name}={value}: must be {bounds}")
    return float(value)


def flag(name: str, value: Any) -> bool:
    """The value as a bool. Raises a TypeError unless it is True, False, 1 or 0."""
    if not isinstance(value, (bool, int, np.bool_)) or value not in (0, 1):
        raise TypeError(f"{name}={value!r}: must be True or False, not {type(value).__name__}")
    return bool(value)


def choice(name: str, value: Any, choices: Sequence[str]) -> str:
    """The value. Raises a ValueError unless it is one of the choices."""
    if value not in choices:
        raise ValueError(f"{name}={value!r}: choose from {choices}")
    return value


def place(
    device: Union[str, int, torch.device, None], dtype: Optional[torch.dtype]
) -> Dict[str, Any]:
    """The device and type of parameters, as arguments of `torch.empty`.

    Raises:
        ValueError: torch does not know the device.
        TypeError: parameters cannot have the type.
    """
    try:
        device = None if device is None else torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device={device!r} is not a device that torch knows") from error
    if dtype is not None and dtype not in PARAMETER_TYPES:
        raise TypeError(f"dtype={dtype!r}: choose from {PARAMETER_TYPES}")
    return {"device": device, "dtype": dtype}


def by_name(layer: str, unnamed: Sequence[Any]) -> None:
    """Raise a TypeError if arguments after `hidden_size` were given without their names.

    The third argument of `torch.nn.LSTM` is `num_layers`; here one might expect factors there.
    """
    if unnamed:
        value = unnamed[0]
        as_layers = f"num_layers={value} or " if type(value) is int else ""
        raise TypeError(
            f"{layer}: what comes after hidden_size is given by name; write {as_layers}"
            f"factors={value!r} for the {value!r}"
        )
