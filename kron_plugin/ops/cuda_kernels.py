"""The kernels in cuda/, compiled by CuPy for the GPU at hand, on torch's memory and streams.

There are two kinds. `butterfly` holds a vector in registers and serves a KRU of 2x2 factors.
`stages` holds it in shared memory, or in device memory if that is too small, and serves any factors
and cells. cuda/README.md explains both.
"""

import hashlib
from functools import cache
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import torch
from torch import Tensor

from .backends import Problem

FOLDER = Path(__file__).parents[1] / "cuda"

STORED = {
    torch.float32: "float",
    torch.float64: "double",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
}
FORMS = ("dense", "features", "tokens")  # enum Form of step.cuh
FUNCTIONS = {
    "butterfly": ("forward", "backward", "product", "gradient"),
    "stages": ("forward", "backward", "product"),
}

# Constants of step.cuh and butterfly.cuh; a test compares them.
MAX_STAGES = 32
MAX_PRODUCTS = 4
# Double precision takes twice the registers. It is for checks, in a single warp.
MAX_BUTTERFLY_BITS = {torch.float32: 10, torch.float64: 6, torch.bfloat16: 10, torch.float16: 10}

PLAN = np.dtype([("count", np.int32), ("columns", np.int32), ("stages", np.int32, (MAX_STAGES, 4))])
_NUMBERS = "steps batch size first initial_rows inputs symbols activation adjoint capacity cached"
_POINTERS = (
    "x weight bias factors initial lengths outputs kept last recurrent d_outputs d_last delta"
    " d_input d_bias d_initial d_factors workspace"
)
# The arguments of the kernels, passed by value: `struct Call` of step.cuh.
CALL = np.dtype(
    [
        *((name, np.int64) for name in _NUMBERS.split()),
        *((name, np.uint64) for name in _POINTERS.split()),
        ("plans", PLAN, MAX_PRODUCTS),
    ]
)


class Kernels(NamedTuple):
    """Kernels that are compiled together: template arguments of the functions of one kind.

    Values that change from call to call, such as batch and length, are not among them.
    """

    kind: str  # a key of FUNCTIONS
    stored: str  # a value of STORED
    parts: int  # numbers in an element: 2 for complex states, 1 for real ones
    bits: int = 0  # butterfly: log2 N
    form: int = 0  # butterfly: enum Form of step.cuh
    activation: int = 0  # butterfly: enum Activation
    cell: str = "rnn"  # the name of a header in cells/

    def names(self) -> List[str]:
        """The C++ names of its functions."""
        names = []
        for function in FUNCTIONS[self.kind]:
            arguments = [self.stored, self.parts]
            if self.kind == "butterfly":
                ways = {"forward": (self.form, self.activation), "backward": (self.activation,)}
                arguments += [self.bits, *ways.get(function, ())]
            names.append(f"{self.kind}_{function}<{', '.join(map(str, arguments))}>")
        return names

    def code(self) -> str:
        """The source to compile, with its cell included."""
        source = (FOLDER / f"{self.kind}.cu").read_text(encoding="utf-8")
        return f'#include "cells/{self.cell}.cuh"\n{source}'


class Geometry(NamedTuple):
    """The size of a launch; `fields` are those of `struct Call` that depend on it."""

    grid: int
    block: Tuple[int, int]
    shared: int  # bytes of shared memory a block
    fields: Dict[str, Any]


def missing() -> Optional[str]:
    """Why CuPy cannot be used, or None."""
    try:
        import cupy  # noqa: F401
    except ImportError as error:
        major = (torch.version.cuda or "13").split(".")[0]
        return f"CuPy cannot be imported ({error}); pip install 'kron-plugin[cuda{major}]'"
    return None


def obstacle(problem: Problem) -> Optional[str]:
    """Why the kernels cannot serve, or None. Compiles some to find out."""
    if problem.dtype not in STORED:
        return f"it serves {', '.join(map(str, STORED))}, not {problem.dtype}"
    reason = missing()
    if reason is None:
        try:
            load(kernels_for([2, 2] * 2, problem.dtype, problem.is_complex))
        except RuntimeError as error:
            reason = str(error)
    return reason


def kernels_for(
    shapes: Sequence[int], dtype: torch.dtype, is_complex: bool, form: int = 0, activation: int = 0
) -> Kernels:
    """The kernels for factors of sizes P_0, Q_0, P_1, …"""
    bits, parts = len(shapes) // 2, 2 if is_complex else 1
    if set(shapes) == {2} and 2 <= bits <= MAX_BUTTERFLY_BITS[dtype]:
        return Kernels("butterfly", STORED[dtype], parts, bits, form, activation)
    return Kernels("stages", STORED[dtype], parts)


@cache
def load(kernels: Kernels) -> Dict[str, Any]:
    """The functions by their short names, compiled on first use and cached by CuPy.

    Raises:
        RuntimeError: the compiler refused the source; the message holds its output.
    """
    import cupy

    # The key of CuPy's cache is the source and the options, without the included files.
    digest = hashlib.sha256(b"".join(p.read_bytes() for p in sorted(FOLDER.rglob("*.cuh"))))
    options = ("--std=c++17", f"-I{FOLDER.resolve()}", f"-DKRON_HEADERS={digest.hexdigest()[:16]}")
    module = cupy.RawModule(code=kernels.code(), options=options, name_expressions=kernels.names())
    try:
        return {
            function: module.get_function(name)
            for function, name in zip(FUNCTIONS[kernels.kind], kernels.names(), strict=True)
        }
    except cupy.cuda.compiler.CompileException as error:
        raise RuntimeError(f"{kernels.kind}.cu does not compile: {error}") from error


def launch(
    kernels: Kernels, function: str, device: torch.device, geometry: Geometry, **fields
) -> None:
    """Start a kernel on torch's current stream; tensors (None: null) and numbers by field name."""
    if geometry.grid == 0:  # an empty batch: CUDA refuses to launch it
        return
    import cupy

    call = np.zeros(1, CALL)
    for name, value in {**geometry.fields, **fields}.items():
        if isinstance(value, Tensor):
            value = value.data_ptr()
        call[name] = 0 if value is None else value
    kernel = load(kernels)[function]
    with cupy.cuda.Device(device.index), current_stream(device):
        if geometry.shared > 48 * 1024:  # what a block has by default
            kernel.max_dynamic_shared_size_bytes = geometry.shared
        # As bytes: CuPy asks for the names of all fields of an array with fields.
        arguments = (call.view(f"V{CALL.itemsize}"),)
        kernel((geometry.grid,), geometry.block, arguments, shared_mem=geometry.shared)


class _Stream(NamedTuple):
    """A stream by the CUDA stream protocol, which some versions of torch do not have."""

    address: int

    def __cuda_stream__(self) -> Tuple[int, int]:
        return 0, self.address


def current_stream(device: torch.device) -> Any:
    """torch's current stream as a context in which CuPy launches."""
    import cupy

    address = torch.cuda.current_stream(device).cuda_stream
    return cupy.cuda.Stream.from_external(_Stream(address))


def aligned(tensor: Tensor) -> Tensor:
    """The tensor, or a copy of it, contiguous and aligned to loads of 16 bytes."""
    tensor = tensor.contiguous()
    return tensor if tensor.data_ptr() % 16 == 0 else tensor.clone()


@cache
def attribute(device: torch.device, name: str) -> int:
    """One of CUDA's device attributes."""
    import cupy

    return int(cupy.cuda.Device(device.index).attributes[name])
