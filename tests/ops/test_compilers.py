"""The CPU kernels built by compilers other than g++, and on another processor."""

import shutil
from functools import partial
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
    ("kind", "name"),
    [
        ("kru", "mixed"), ("kru", "tall first"), ("kru", "2x2s"), ("lstm", "mixed"),
        ("lstm", "2x2s"), ("gru", "mixed"), ("gru", "2x2s"),
    ],
)  # fmt: skip
def test_equals_the_reference(kind, name):
    case = random_case(KINDS[kind], SHAPES[name], WIDTHS, 5, "features", True)
    results = run(case, "cpu")
    assert worst_error(results, run(case, "reference")) < 1e-11
    assert equal(run(case, "cpu", checkpoint_every=2), results)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("name", ["mixed", "tall first", "2x2s"])
def test_the_product_equals_the_reference(name):
    new = partial(torch.randn, dtype=torch.complex128, requires_grad=True)
    factors = [new(size) for size in SHAPES[name]]
    x = new(WIDTHS, prod([w.shape[1] for w in factors]))
    results = {}
    for backend in ("cpu", "reference"):
        y = kron_matmul(x, factors, backend=backend)
        results[backend] = y, *torch.autograd.grad(y.abs().sum(), [x, *factors])
    torch.testing.assert_close(results["cpu"], results["reference"])
