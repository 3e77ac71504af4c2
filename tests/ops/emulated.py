"""The CPU kernels on an ARM processor emulated by qemu: a stand-in for `kernel.run`."""

import ctypes
import hashlib
import shutil
import struct
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch

from kron_plugin.cache import cache_folder
from kron_plugin.files import atomic_write
from kron_plugin.ops.native import kernel
from kron_plugin.ops.native.compile import FLAGS, HEADERS

COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
MAIN = Path(__file__).with_name("emulated.cpp")
# Without the flags for a library and for this processor; -O3 would take a minute.
PROGRAM_FLAGS = [f for f in FLAGS if f not in ("-O3", "-march=native", "-shared", "-fPIC")]


def run(name, function, call, dtype, is_complex, **fields):
    """Like `kernel.run`, with one process per call."""
    program = build(name, dtype, is_complex)
    sent, buffers = [], []
    for name, _ in call._fields_:
        value = fields.pop(name, 0)
        if isinstance(value, torch.Tensor):
            content = bytes_of(value.contiguous())
            buffers += [(value, len(content))] if content else []
            sent.append(struct.pack("q", len(content)) + content)
        else:
            sent.append(struct.pack("q", 0) if value is None else struct.pack("qq", -1, value))
    assert not fields
    command = [EMULATOR, program, function]
    received = subprocess.run(command, input=b"".join(sent), stdout=subprocess.PIPE, check=True)
    rest = received.stdout
    for tensor, size in buffers:
        content, rest = rest[:size], rest[size:]
        if tensor.is_contiguous():
            ctypes.memmove(tensor.data_ptr(), content, size)
    assert not rest


def bytes_of(tensor):
    return ctypes.string_at(tensor.data_ptr(), tensor.numel() * tensor.element_size())


@cache
def build(name, dtype, is_complex):
    """The program of one kernel for one type of number, kept beside the libraries."""
    source, headers = kernel.sources(name)
    command = [
        *(COMPILER, "-O0", "-static", *PROGRAM_FLAGS),
        *(f"-D{macro}" for macro in kernel.defines(name, dtype, is_complex)),
        f'-DKRON_SOURCE="{source}"',
    ]
    files = [MAIN, source, *HEADERS, *headers]
    version = subprocess.run([COMPILER, "--version"], capture_output=True, check=True).stdout
    key = hashlib.sha256(b"\0".join([version, str(command).encode(), *map(Path.read_bytes, files)]))
    path = cache_folder() / f"{name}-{key.hexdigest()[:20]}.aarch64"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder, atomic_write(path) as unfinished:
            subprocess.run([*command, MAIN, "-o", f"{folder}/program"], check=True)
            shutil.copy(f"{folder}/program", unfinished)
    return path
