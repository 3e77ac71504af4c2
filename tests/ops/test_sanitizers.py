"""The kernels, compiled with AddressSanitizer and UndefinedBehaviorSanitizer; `make sanitize` runs
all of their tests so."""

import os
import sys
from pathlib import Path

import pytest

from ..conftest import ROOT, run

# An index beyond a tensor of torch's, or a shift beyond what its type holds.
BROKEN = """
import ctypes, pathlib, sys, torch
from kron_plugin.ops.native import compile
source = pathlib.Path("broken.cpp")
source.write_text('extern "C" void broken(long* a, long i) { a[i] = 1L << i; }')
tensor = torch.zeros(4, dtype=torch.int64)
compile.load(source).broken(ctypes.c_void_p(tensor.data_ptr()), ctypes.c_long(int(sys.argv[1])))
"""
HERE = Path(__file__).parent.relative_to(ROOT)
CASES = (
    f"{HERE}/test_kron_rnn_cpu.py::test_any_number_of_threads[7-1]",
    f"{HERE}/test_kron_rnn_cpu.py::test_any_number_of_threads[40-5]",
    f"{HERE}/test_cuda_on_cpu.py::test_equals_the_reference[12]",
)


@pytest.fixture
def sanitized(tmp_path):
    """Run Python with sanitized kernels, in the checkout."""

    def call(*args, cwd=ROOT):
        env = {"KRON_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": os.pathsep.join(sys.path)}
        return run("bash", ROOT / "tests" / "sanitize.sh", sys.executable, *args, cwd=cwd, env=env)

    return call


def test_the_kernels_stay_within_their_tensors(sanitized):
    # A report would be lost with what pytest captures.
    result = sanitized("-m", "pytest", "-s", "-p", "no:cacheprovider", "-p", "no:xdist", *CASES)
    assert result.returncode == 0, result.stdout[-5000:]
    assert f"{len(CASES)} passed" in result.stdout


@pytest.mark.parametrize(
    ("index", "report"),
    [(4, "AddressSanitizer: heap-buffer-overflow"), (-1, "runtime error: shift exponent -1")],
)
def test_what_is_beyond_is_found(sanitized, tmp_path, index, report):
    result = sanitized("-c", BROKEN, index, cwd=tmp_path)
    assert report in result.stdout
    assert result.returncode != 0
