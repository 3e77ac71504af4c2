"""The CPU kernels built by compilers other than g++, and on another processor."""

import shutil
from math import prod

import pytest
import torch

from kron_plugin.ops import kron_matmul
from kron_plugin.ops.native import kernel

from . import emulated
from .recurrence_cases import KINDS, SHAPES, equal, random_case, run, worst_error


def use_clang(monkeypatch):
    monkeypatch.setenv("CXX", "sh -c 'exec clang++ \"$@\" -O0' clang++")  # -O3 takes long


def use_arm(monkeypatch):
    monkeypatch.setattr(kernel, "run", emulated.run)


@pytest.fixture(
    params=[
        (["clang++"], use_clang),
        ([emulated.COMPILER, emulated.EMULATOR], use_arm),
    ],
    ids=["clang", "aarch64"],
)
def kernels(request, monkeypatch):
    programs, use = request.param
    for program in programs:
        if not shutil.which(program):
            pytest.skip(f"needs {program}")
    monkeypatch.setenv("KRON_NUM_THREADS", "1")
    kernel.library.cache_clear()
    use(monkeypatch)
    yield
    kernel.library.cache_clear()


WIDTHS = 15  # sequences: one block of each number of lanes of float64, 8, 4, 2 and 1


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize(
    ("kind", "name"), [("kru", "mixed"), ("kru", "tall first"), ("lstm", "mixed"), ("gru", "mixed")]
)
def test_equals_the_reference(kind, name):
    case = random_case(KINDS[kind], SHAPES[name], WIDTHS, 5, "features", True)
    results = run(case, "cpu")
    assert worst_error(results, run(case, "reference")) < 1e-11
    assert equal(run(case, "cpu", checkpoint_every=2), results)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("name", ["mixed", "tall first"])
def test_the_product_equals_the_reference(name, dtype):
    factors = [torch.randn(size, dtype=dtype, requires_grad=True) for size in SHAPES[name]]
    n = prod([w.shape[1] for w in factors])
    x = torch.randn(WIDTHS, n, dtype=dtype, requires_grad=True)
    results = {}
    for backend in ("cpu", "reference"):
        y = kron_matmul(x, factors, backend=backend)
        results[backend] = y, *torch.autograd.grad(y.abs().sum(), [x, *factors])
    torch.testing.assert_close(results["cpu"], results["reference"])
