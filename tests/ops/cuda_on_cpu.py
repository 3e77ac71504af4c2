"""A stand-in for CuPy that compiles the kernels for the CPU and runs them on tensors there."""

import ctypes
import hashlib
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import torch

from kron_plugin.ops import cuda_kernels
from kron_plugin.ops.native.compile import find_compiler

HEADER = Path(__file__).with_name("cuda_on_cpu.h")
STREAM = 12345  # the address of "torch's current stream"
H100 = {"MultiProcessorCount": 2, "MaxSharedMemoryPerBlockOptin": 232448}
FLAGS = ("-O1", "-std=c++17", "-pthread", "-Wall", "-Wno-unknown-pragmas", "-Werror")


def compile_for_cpu(source: str, target: Path, flags=(), options=(), header=HEADER) -> None:
    """Compile CUDA source, with options for NVRTC and flags for the C++ compiler."""
    unit = target.with_suffix(".cpp")
    unit.write_text(source)
    options = [option for option in options if not option.startswith("--")]
    includes = ["-include", header, f"-I{cuda_kernels.FOLDER.resolve()}"]
    call(*find_compiler(), *FLAGS, *flags, *options, *includes, unit, "-o", target)


def precompiled_header(folder: Path, flags) -> Path:
    """A copy of the header, and its precompiled form for libraries with these flags."""
    header = folder / HEADER.name
    if not header.exists():
        header.write_bytes(HEADER.read_bytes())
        language = ("-w", "-x", "c++-header")
        call(*find_compiler(), *FLAGS, *flags, *language, header, "-o", f"{header}.gch")
    return header


def call(*command) -> None:
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[:5000]


class RawModule:
    """Like `cupy.RawModule`, as far as the loader needs it."""

    folder: Path  # for libraries, which several tests use
    libraries: dict = {}  # noqa: RUF012

    def __init__(self, code, options, name_expressions):
        self.names = list(name_expressions)
        arguments = "const unsigned* n, unsigned long shared, const Call* call"
        wrappers = [
            f'extern "C" void kernel_{i}({arguments})'
            f" {{ run_on_cpu({name}, {{n[0], 1, 1}}, {{n[1], n[2], 1}}, shared, *call); }}\n"
            for i, name in enumerate(self.names)
        ]
        source = code + "".join(wrappers)
        source += 'extern "C" unsigned long call_size() { return sizeof(Call); }\n'
        key = hashlib.sha256(f"{source}{options}".encode()).hexdigest()[:16]
        if key not in self.libraries:
            path = self.folder / f"kernels-{key}.so"
            flags = ("-shared", "-fPIC")
            header = precompiled_header(self.folder, flags)
            compile_for_cpu(source, path, flags, options, header)
            self.libraries[key] = ctypes.CDLL(str(path))
        self.library = self.libraries[key]
        assert self.library.call_size() == cuda_kernels.CALL.itemsize

    def get_function(self, name):
        return Kernel(getattr(self.library, f"kernel_{self.names.index(name)}"))


class Kernel:
    """Like `cupy.RawKernel`, which must also be asked for shared memory beyond 48 KiB."""

    max_dynamic_shared_size_bytes = 48 * 1024

    def __init__(self, function):
        self.function = function

    def __call__(self, grid, block, args, *, shared_mem):
        assert all(grid)
        assert shared_mem <= self.max_dynamic_shared_size_bytes
        sizes = (ctypes.c_uint * 3)(*grid, *block)
        (call,) = args
        self.function(sizes, ctypes.c_ulong(shared_mem), ctypes.c_void_p(call.ctypes.data))


class _Device(nullcontext):
    def __init__(self, index):
        super().__init__()
        self.attributes = H100


class CompileException(Exception):  # noqa: N818
    """Like CuPy's."""


def fake_cupy():
    """The module that `import cupy` gives the loader."""
    cuda = SimpleNamespace(
        Device=_Device,
        Stream=SimpleNamespace(from_external=lambda stream: nullcontext()),
        compiler=SimpleNamespace(CompileException=CompileException),
    )
    return SimpleNamespace(RawModule=RawModule, cuda=cuda)


def current_stream(device):
    return SimpleNamespace(cuda_stream=STREAM)


def install(monkeypatch, folder):
    """Let `backend="cuda"` serve tensors on the CPU until the test is over."""
    from kron_plugin.ops.kron import dispatch as products

    from .recurrence_cases import RECURRENCES

    RawModule.folder = folder
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # do not touch a real GPU
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy())
    monkeypatch.setattr(torch.cuda, "current_stream", current_stream)
    recurrences = [recurrence.backends for recurrence in RECURRENCES.values()]
    for backends in (products.BACKENDS, *recurrences):
        table = backends.table
        monkeypatch.setitem(table, "cuda", table["cuda"]._replace(device="cpu"))
    cuda_kernels.load.cache_clear()
    cuda_kernels.attribute.cache_clear()
