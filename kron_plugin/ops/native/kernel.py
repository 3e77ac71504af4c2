"""Loading a kernel for one type of number, and calling it with tensors.

A kernel is "product" or the name of a cell.
"""

import ctypes
import os
import sys
import threading
from functools import cache
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple

import torch
from torch import Tensor

from ..backends import Problem, compute_type, constant_in_graphs

HERE = Path(__file__).parent
MAX_THREADS = 1024
VECTOR_BYTES = 64  # of lanes.h


class _Interpreter(ctypes.Structure):
    """`struct Interpreter` of interrupt.h."""

    _fields_ = [(name, ctypes.c_void_p) for name in ("release", "acquire", "raised")]


def _interpreter(*functions: str) -> _Interpreter:
    found = [getattr(ctypes.pythonapi, name) for name in functions]
    return _Interpreter(*(ctypes.cast(function, ctypes.c_void_p) for function in found))


# Signals come to the main thread. A kernel called by another thread need not look for them.
_MAIN = _interpreter("PyEval_SaveThread", "PyEval_RestoreThread", "PyErr_CheckSignals")
_OTHER = _interpreter("PyEval_SaveThread", "PyEval_RestoreThread")


@cache
def library(name: str, dtype: torch.dtype, is_complex: bool) -> Tuple[Optional[ctypes.PyDLL], str]:
    """A kernel, compiled for one type of number; or None and the reason."""
    if sys.platform != "linux":
        return None, "it is compiled on Linux only"
    from . import compile as compiling  # it can be imported on Linux only

    try:
        loaded = compiling.load(*sources(name), defines(name, dtype, is_complex))
    except compiling.CompileError as error:
        return None, str(error)
    # It releases the interpreter's lock itself, and takes it again to look for signals.
    return ctypes.PyDLL(loaded._name, handle=loaded._handle), ""


def sources(name: str) -> Tuple[Path, List[Path]]:
    """The file of a kernel, and the header of its own if it is a cell's."""
    if name == "product":
        return HERE / "product.cpp", []
    return HERE / "recurrence.cpp", [HERE / "cells" / f"{name}.h"]


def defines(name: str, dtype: torch.dtype, is_complex: bool) -> List[str]:
    """The macros that a kernel is compiled with."""
    return [
        *(f'KRON_CELL="cells/{header.name}"' for header in sources(name)[1]),
        f"KRON_REAL={'float' if dtype == torch.float32 else 'double'}",
        f"KRON_COMPLEX={int(is_complex)}",
    ]


def obstacle(name: str, problem: Problem) -> Optional[str]:
    """Why a kernel cannot serve, or None. Compiles it to find out."""
    return library(name, compute_type(problem.dtype), problem.is_complex)[1] or None


def run(
    kernel: str,
    function: str,
    call: ctypes.Structure,
    dtype: torch.dtype,
    is_complex: bool,
    **fields,
) -> None:
    """Fill a call's fields with tensors (None or empty: null) and numbers, then make the call.

    The call's sizes say how many numbers of each tensor the kernel reads and writes. The operators
    check that the tensors have them.

    Raises:
        ValueError: a tensor is not in the CPU's memory, or there is no such number of threads.
        MemoryError: the kernel could not get its scratch memory.
        KeyboardInterrupt, or another error of a signal handler: within a tenth of a second and one
            or two steps. The results are then incomplete.
    """
    if not 1 <= fields["threads"] <= MAX_THREADS:
        raise ValueError(f"threads={fields['threads']}: must be from 1 to {MAX_THREADS}")
    _alive = fill(call, f"kron_{kernel}_{function}", fields)
    loaded, reason = library(kernel, dtype, is_complex)
    if loaded is None:
        raise RuntimeError(reason)
    is_main = threading.current_thread() is threading.main_thread()
    call.interpreter = ctypes.addressof(_MAIN if is_main else _OTHER)
    if getattr(loaded, function)(ctypes.byref(call)):
        raise MemoryError(f"kron_{kernel}_{function}: no memory for the states in progress")


def fill(call: ctypes.Structure, operation: str, fields: Dict[str, Any]) -> List[Tensor]:
    """Fill a call's fields with tensors (None or empty: null) and numbers. Returns what has to
    live as long as the call.

    Raises:
        ValueError: a tensor is not in the CPU's memory.
    """
    alive = []
    for name, value in fields.items():
        if isinstance(value, Tensor):
            if not value.is_cpu:
                raise ValueError(f"{operation}: {name} is on {value.device}, not on the CPU")
            value = value.contiguous()
            alive.append(value)
            value = value.data_ptr() or None
        setattr(call, name, value)
    return alive


class StreamFunctions(NamedTuple):
    """The functions of a stream, with its handle first; tensors go in by address."""

    open: Callable[..., int]  # (calls, layers, the most features that a cell projects)
    advance: Callable[[int, int, int], int]  # (handle, x, output): not 0 for a token without a row
    load: Callable[[int, int], None]
    store: Callable[[int, int], None]
    close: Callable[[int], None]


@cache
def stream(cell: str, dtype: torch.dtype, is_complex: bool) -> StreamFunctions:
    """What a stream calls.

    Raises:
        RuntimeError: the kernel cannot be compiled.
    """
    kernel, reason = library(cell, dtype, is_complex)
    if kernel is None:
        raise RuntimeError(reason)
    functions = [kernel[f"stream_{name}"] for name in StreamFunctions._fields]
    for function, pointers, numbers in zip(
        functions, (1, 3, 2, 2, 1), (2, 0, 0, 0, 0), strict=True
    ):
        function.argtypes = [ctypes.c_void_p] * pointers + [ctypes.c_int64] * numbers
    functions[0].restype = ctypes.c_void_p
    return StreamFunctions(*functions)


def tokens(operation: str, x: Tensor, symbols: int) -> Tensor:
    """Tokens as a kernel reads them.

    Raises:
        IndexError: a token is not a symbol.
    """
    x = x.to(torch.int64)
    if x.numel() and not 0 <= int(x.min()) <= int(x.max()) < symbols:
        raise IndexError(f"{operation}: tokens must be from 0 to {symbols - 1}")
    return x


def aligned(tensor: Tensor) -> Tensor:
    """The tensor, or a copy of it at an address where a kernel's vectors may begin. The copy is
    needed only if it was stored elsewhere meanwhile, as hooks on saved tensors may do."""
    return tensor.clone() if tensor.data_ptr() % VECTOR_BYTES else tensor


@constant_in_graphs
def thread_count() -> int:
    """$KRON_NUM_THREADS, else torch's own number of threads."""
    chosen = os.environ.get("KRON_NUM_THREADS")
    if not chosen:
        return torch.get_num_threads()
    if not chosen.isdecimal() or not 1 <= int(chosen) <= MAX_THREADS:
        raise ValueError(
            f"$KRON_NUM_THREADS is {chosen!r}: must be a number from 1 to {MAX_THREADS}"
        )
    return int(chosen)
