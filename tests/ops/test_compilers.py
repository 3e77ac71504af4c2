"""The CPU kernels as other compilers than g++ build them, and on another processor."""

import shutil

import pytest
import torch

from kron_plugin.ops.native import kernel

from . import emulated, test_kron_lstm
from .recurrence_cases import PAIRS, random_case, run, worst_error


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


WIDTHS = 15  # sequences: a block of each number of lanes that float64 has, 8, 4, 2 and 1


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("name", ["mixed", "tall first"])
def test_kru(name):
    case = random_case(PAIRS[name], WIDTHS, 5, form="features", with_lengths=True)
    results = run(case, backend="cpu")
    assert worst_error(results, run(case, backend="reference")) < 1e-11
    again = run(case, backend="cpu", checkpoint_every=2)
    assert all(map(torch.equal, again, results))


@pytest.mark.usefixtures("kernels")
def test_lstm():
    case = test_kron_lstm.random_case(
        test_kron_lstm.GATES["each its own"], WIDTHS, 5, "features", True
    )
    results = test_kron_lstm.run(case, backend="cpu")
    assert worst_error(results, test_kron_lstm.run(case, backend="reference")) < 1e-12
    again = test_kron_lstm.run(case, backend="cpu", checkpoint_every=2)
    assert all(map(torch.equal, again, results))
