"""The CPU kernel: the tests of every backend, and its own: threads, memory, exactness."""

import os
import subprocess
import sys

import pytest
import torch

from kron_plugin.ops import available_backends, kron_lstm
from kron_plugin.ops.inputs import MAX_FEATURES
from kron_plugin.ops.kron import solve
from kron_plugin.ops.kron.flat import Layout
from kron_plugin.ops.recurrence.cpu import MOST_WEIGHTS, most_features

from .recurrence_cases import (
    KINDS,
    ONE_OF_EACH_CELL,
    SHAPES,
    cast,
    equal,
    forward,
    random_case,
    run,
    worst_error,
)
from .recurrence_contract import FusedContract

cells = pytest.mark.parametrize("kind", ONE_OF_EACH_CELL)


def test_the_backend_is_here():
    assert "cpu" in available_backends(), "these tests need a C++ compiler"


class TestCPU(FusedContract):
    backend = "cpu"
    shapes = SHAPES | {"large": [(512, 512)]}


@pytest.mark.parametrize("threads", ["1", "2", "5"])
@pytest.mark.parametrize("batch", [1, 7, 16, 40])
@cells
def test_any_number_of_threads(kind, batch, threads, monkeypatch):
    case = random_case(KINDS[kind], SHAPES["mixed"], batch, 3, "tokens", True)
    expected = run(case, "reference")
    monkeypatch.setenv("KRON_NUM_THREADS", threads)
    assert worst_error(run(case, "cpu"), expected) < 1e-11


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("inputs", [2, 3, 10])
@pytest.mark.parametrize("steps", [1, 7, 8, 17])
@cells
def test_features_are_projected_several_steps_at_a_time(kind, steps, inputs, dtype):
    """With lanes of units, for 2x2 factors, eight steps at a time."""
    case = random_case(KINDS[kind], SHAPES["2x2s"], 3, steps, "features", True, dtype, inputs)
    bound = 1e-11 if dtype == torch.float64 else 1e-4
    assert worst_error(run(case, "cpu"), run(case, "reference")) < bound


def test_torch_projects_features_where_it_is_faster():
    """Lanes of units need a factor above the four lowest."""
    for count, most in (4, MAX_FEATURES), (5, MOST_WEIGHTS // 64):
        layout = Layout((2,) * (2 * count), (count,), True)
        assert most_features(layout, 2 << count) == most
    assert most_features(Layout((2, 2, 16, 16), (2,), True), 64) == MAX_FEATURES


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize(
    "entries", [[[1, 1], [1, 1.001]], [[0.01, 1], [1, 0.01]], [[1, 1], [0, 0]]]
)
@cells
def test_factors_that_lanes_of_units_do_not_suit(kind, entries, every):
    """Ill-conditioned ones need another way back, from states kept in lanes of units. Those with
    a swap are none of them. A singular one without pivots needs lanes of sequences."""
    case = random_case(KINDS[kind], SHAPES["2x2s"], batch=5, steps=7, inputs=3)
    for product in case.factors:
        with torch.no_grad():
            product[-2].copy_(torch.tensor(entries, dtype=product[-2].dtype))
    options = {"need_output": False, "checkpoint_every": every}
    assert worst_error(run(case, "cpu", **options), run(case, "reference", **options)) < 1e-10


@pytest.mark.parametrize("threads", ["0", "-3", "many", "1025", str(2**64 - 1)])
def test_a_wrong_number_of_threads_is_named(threads, monkeypatch):
    monkeypatch.setenv("KRON_NUM_THREADS", threads)
    with pytest.raises(ValueError, match="KRON_NUM_THREADS is"):
        run(random_case(), "cpu")


@pytest.mark.parametrize("every", [1, 2])
def test_threads_may_change_before_the_way_back(every, monkeypatch):
    case = random_case(shapes=SHAPES["mixed"], batch=24, steps=5, dtype=torch.float32)

    def gradients(threads_back):
        monkeypatch.setenv("KRON_NUM_THREADS", "1")
        _, (last,) = forward(case, "cpu", need_output=False, checkpoint_every=every)
        monkeypatch.setenv("KRON_NUM_THREADS", threads_back)
        return torch.autograd.grad(last, case.leaves(), case.d_state)

    assert equal(gradients("4"), gradients("1"))


@cells
def test_what_is_kept_may_have_been_elsewhere_meanwhile(kind):
    """Hooks on saved tensors may move them to an address where no vector may begin."""
    case = random_case(KINDS[kind], batch=16, steps=4, dtype=torch.float32)

    def shift(saved):
        return torch.cat([saved.new_empty(1).detach(), saved.detach().flatten()]), saved.shape

    expected = run(case, "cpu", need_output=False)
    with torch.autograd.graph.saved_tensors_hooks(shift, lambda pair: pair[0][1:].view(pair[1])):
        results = run(case, "cpu", need_output=False)
    assert equal(results, expected)


def test_no_more_threads_than_the_system_gives():
    """The caller does the share of threads that cannot be started."""
    program = """if True:
        import resource, torch
        from tests.ops.recurrence_cases import equal, random_case, run
        case = random_case(batch=200, dtype=torch.float32)
        results = []
        for spare in (None, 40):  # MiB of address space: stacks of threads take 8 each
            if spare:
                used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
                resource.setrlimit(resource.RLIMIT_AS, (used + spare * 2**20,) * 2)
            results.append(run(case, "cpu"))
        assert equal(*results)
    """
    environment = {**os.environ, "KRON_NUM_THREADS": "12"}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)


def test_the_scale_of_factors_may_be_far_from_one():
    """W^H delta leaves single precision, though no factor's own gradient does."""
    exact = random_case(KINDS["complex identity"], [(2, 2)] * 4, 3, 1)
    small = [(1e-11 * w).detach().requires_grad_() for w in exact.factors[0]]
    exact = exact._replace(factors=[small])
    factors = slice(3, 7)  # after the state, outputs and x
    have = run(cast(exact, torch.float32), "cpu")[factors]
    for ours, theirs in zip(have, run(exact, "reference")[factors], strict=True):
        assert float((ours.to(theirs.dtype) - theirs).norm()) < 1e-5 * float(theirs.norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@cells
def test_both_ways_to_the_factors_gradient(kind, dtype, monkeypatch):
    exact = random_case(KINDS[kind], SHAPES["2x2s"], 9, 12)
    expected = run(exact, "reference")
    case = cast(exact, dtype)
    tolerance = 1e-4 if dtype == torch.float32 else 1e-12
    results = {}
    for limit in (0.0, 1e3):
        monkeypatch.setitem(solve.MAX_CONDITION, dtype, limit)
        results[limit] = run(case, "cpu")
        assert worst_error(results[limit], expected) < tolerance
    assert not equal(results[0.0], results[1e3])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch", [1, 29])
def test_sigmoid_and_tanh_are_exact_to_rounding(dtype, batch):
    points = torch.cat([torch.linspace(-75, 75, 4001), torch.tensor([0.0, 1e-6, -1e-6, 1e-30])])
    points = points.to(dtype)
    n, zero, large = len(points), torch.zeros(batch, len(points)), torch.full((len(points),), 75.0)
    identity = [[torch.zeros(n, 1, dtype=dtype), torch.ones(1, n, dtype=dtype)]] * 4
    # c = σ(z_f) · 1 and h = tanh(c), with i g = 0 and o = 1; then c = c0.
    for forget, c0 in [(points, torch.ones(n)), (large, points)]:
        bias = torch.cat([large, forget, torch.zeros(n), large]).to(dtype)
        x = torch.zeros(1, batch, 4 * n, dtype=dtype)
        state = (zero.to(dtype), c0.expand(batch, n).to(dtype))
        _, (h, c) = kron_lstm(x, identity, bias, state, backend="cpu")
        wanted_c = forget.double().sigmoid() * c0.double()
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(c.double(), wanted_c.expand(batch, n), rtol=3 * eps, atol=0)
        wanted_h = c.double().tanh()
        torch.testing.assert_close(h.double(), wanted_h, rtol=3 * eps, atol=0)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.uint16, torch.uint32])
def test_tokens_of_any_type(dtype):
    case = random_case(form="tokens")
    assert equal(run(case._replace(x=case.x.to(dtype)), "cpu"), run(case, "cpu"))
