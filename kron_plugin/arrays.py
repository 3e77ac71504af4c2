"""Arrays and numbers of numpy in checkpoints, which fairseq logs for BLEU and other scores.

numpy's own functions are not safe to load: a pickled dtype can claim that bytes are objects, and
numpy then follows these bytes as pointers. The stand-ins here accept only numbers.
"""

import re
from pickle import UnpicklingError
from typing import Any, Callable, Tuple

import numpy as np

NUMBERS = re.compile(r"[<>=|]?(b1|[iu][1248]|f[248]|c8|c16)")


class NumberType:
    """Stands in for `numpy.dtype`: a type of numbers in either byte order."""

    def __init__(self, code: Any, align: Any = False, copy: Any = True) -> None:
        if not (isinstance(code, str) and NUMBERS.fullmatch(code)):
            raise UnpicklingError(f"an array of {str(code)[:20]!r}, which are no numbers")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: Tuple) -> None:
        if state[1] not in ("<", ">", "=", "|"):
            raise UnpicklingError("an array with an unknown order of bytes")
        self.dtype = self.dtype.newbyteorder(state[1])


class NumberArray(np.ndarray):
    """Stands in for `numpy.ndarray` and is one. It is saved as an ordinary array."""

    def __new__(cls) -> "NumberArray":
        return super().__new__(cls, (0,), np.uint8)

    def __setstate__(self, state: Tuple) -> None:
        _, shape, number_type, is_fortran, content = state
        checked: Any = (1, shape, _dtype(number_type), bool(is_fortran), bytes(content))
        super().__setstate__(checked)

    def __reduce__(self) -> Any:
        return np.asarray(self).__reduce__()


def reconstruct(*_: Any) -> NumberArray:
    """Stands in for numpy's function that makes an empty array; its state fills it later."""
    return NumberArray()


def no_bytes() -> bytes:
    """Stands in for `bytes`, which numpy calls for an empty array."""
    return b""


def scalar(number_type: Any, content: Any) -> Any:
    """Stands in for numpy's function that makes one number."""
    return np.frombuffer(bytes(content), _dtype(number_type))[0]


def _dtype(number_type: Any) -> np.dtype:
    if type(number_type) is not NumberType:
        raise UnpicklingError("an array without a type of numbers")
    return number_type.dtype


STAND_INS: Tuple[Tuple[Callable[..., Any], str], ...] = (
    (NumberType, "numpy.dtype"),
    (NumberArray, "numpy.ndarray"),
    (no_bytes, "builtins.bytes"),
    *((reconstruct, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    *((scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
)
