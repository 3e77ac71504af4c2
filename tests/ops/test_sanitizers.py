"""A kernel with AddressSanitizer and UndefinedBehaviorSanitizer. `make sanitize` runs the tests of
all kernels in this way, and those of the CUDA kernels on the CPU."""

import os
import re
import sys
from pathlib import Path

import pytest

from ..conftest import ROOT, run

# An index beyond a torch tensor, then a shift beyond the bits of its type.
BROKEN = """
import ctypes, os, pathlib, torch
from kron_plugin.ops.native import compile
source = pathlib.Path("broken.cpp")
source.write_text('extern "C" void broken(long* a, long i) { a[i] = 1L << i; }')
library, tensor = compile.load(source), torch.zeros(4, dtype=torch.int64)
for index in (3, 4, -1):
    child = os.fork()
    if not child:
        library.broken(ctypes.c_void_p(tensor.data_ptr()), ctypes.c_long(index))
        os._exit(0)
    print(index, "passed" if os.waitpid(child, 0)[1] == 0 else "ended", flush=True)
"""
HERE = Path(__file__).parent.relative_to(ROOT)
CASES = (
    f"{HERE}/test_recurrence_cpu.py::test_any_number_of_threads[kru-7-1]",
    f"{HERE}/test_recurrence_cpu.py::test_any_number_of_threads[kru-40-5]",
)


@pytest.fixture
def sanitized(tmp_path):
    """Run Python with sanitized kernels in the checkout."""

    def call(*args, cwd=ROOT):
        env = {"KRON_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": os.pathsep.join(sys.path)}
        return run("bash", ROOT / "tests" / "sanitize.sh", sys.executable, *args, cwd=cwd, env=env)

    return call


def test_the_kernels_stay_within_their_tensors(sanitized):
    # -s, because a report would be lost in pytest's captured output.
    result = sanitized("-m", "pytest", "-s", "-p", "no:cacheprovider", "-p", "no:xdist", *CASES)
    assert result.returncode == 0, result.stdout[-5000:]
    assert f"{len(CASES)} passed" in result.stdout


def test_what_is_beyond_is_found(sanitized, tmp_path):
    printed = sanitized("-c", BROKEN, cwd=tmp_path).stdout
    assert re.findall(r"^(-?\d) (\w+)$", printed, re.M) == [
        ("3", "passed"),
        ("4", "ended"),
        ("-1", "ended"),
    ]
    assert "AddressSanitizer: heap-buffer-overflow" in printed
    assert "runtime error: shift exponent -1" in printed
