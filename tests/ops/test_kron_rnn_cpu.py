"""The CPU kernel as an operator of torch: tracing, double backward, threads, limits."""

import os
import subprocess
import sys

import pytest
import torch

from kron_plugin.ops import kron_rnn
from kron_plugin.ops.kron.flat import flatten
from kron_plugin.ops.kron_rnn import cpu
from kron_plugin.ops.native import solve

from .recurrence_cases import PAIRS, cast, random_case, run, worst_error


@pytest.mark.parametrize("form", ["dense", "features", "tokens"])
def test_opcheck(form, monkeypatch):
    monkeypatch.undo()  # opcheck compares bits of results it asked not to be written
    case = random_case([(2, 2)] * 3, form=form, with_lengths=True)
    flat = flatten(case.factors).detach().requires_grad_()
    shapes = [2] * 6
    for need_output, every in [(True, 1), (False, 1), (True, 2)]:
        tensors = (case.x, flat, case.bias, case.h0, case.weight, case.lengths)
        settings = (shapes, True, "modrelu", need_output, every, 2, True)
        torch.library.opcheck(cpu.kron_rnn_cpu.operator, (*tensors, *settings))


def test_compiles_without_breaking_the_graph():
    case = random_case([(2, 2)] * 3, dtype=torch.float32, form="features", with_lengths=True)

    def model(x, *factors):
        states, last = kron_rnn(
            x, factors, case.bias, case.h0, case.lengths, weight=case.weight, backend="cpu"
        )
        return states.sum() + last.square().sum()

    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    leaves = (case.x, *case.factors)
    ours = torch.autograd.grad(compiled(*leaves), leaves)
    assert worst_error(ours, torch.autograd.grad(model(*leaves), leaves)) < 1e-6


def test_double_backward_names_the_backend_that_has_it():
    case = random_case()
    _, last = kron_rnn(case.x, case.factors, case.bias, case.h0, backend="cpu")
    (gradient,) = torch.autograd.grad(last.square().sum(), case.x, create_graph=True)
    with pytest.raises(RuntimeError, match="backend='reference'"):
        gradient.square().sum().backward()


@pytest.mark.parametrize("threads", ["1", "2", "5"])
@pytest.mark.parametrize("batch", [1, 7, 16, 40])
def test_any_number_of_threads(batch, threads, monkeypatch):
    case = random_case(PAIRS["mixed"], batch, 3, form="tokens", with_lengths=True)
    expected = run(case, backend="reference")
    monkeypatch.setenv("KRON_NUM_THREADS", threads)
    assert worst_error(run(case, backend="cpu"), expected) < 1e-11


@pytest.mark.parametrize("threads", ["0", "-3", "many", "1025", str(2**64 - 1)])
def test_a_wrong_number_of_threads_is_named(threads, monkeypatch):
    monkeypatch.setenv("KRON_NUM_THREADS", threads)
    with pytest.raises(ValueError, match="KRON_NUM_THREADS is"):
        run(random_case(), backend="cpu")


@pytest.mark.parametrize("every", [1, 2])
def test_threads_may_change_before_the_way_back(every, monkeypatch):
    case = random_case(PAIRS["mixed"], 24, 5, dtype=torch.float32)

    def gradients(threads_back):
        monkeypatch.setenv("KRON_NUM_THREADS", "1")
        _, last = kron_rnn(
            *(case.x, case.factors, case.bias, case.h0),
            need_output=False,
            checkpoint_every=every,
            backend="cpu",
        )
        monkeypatch.setenv("KRON_NUM_THREADS", threads_back)
        return torch.autograd.grad(last, case.leaves(), case.d_last)

    for have, expected in zip(gradients("4"), gradients("1"), strict=True):
        assert torch.equal(have, expected)


def test_what_is_kept_may_have_been_elsewhere_meanwhile():
    """As hooks on saved tensors may have it, at an address where no vector begins."""
    case = random_case(batch=16, steps=4, dtype=torch.float32)

    def shift(saved):
        return torch.cat([saved.new_empty(1).detach(), saved.detach().flatten()]), saved.shape

    def gradients():
        _, last = kron_rnn(
            case.x, case.factors, case.bias, case.h0, need_output=False, backend="cpu"
        )
        return torch.autograd.grad(last, case.leaves(), case.d_last)

    with torch.autograd.graph.saved_tensors_hooks(shift, lambda pair: pair[0][1:].view(pair[1])):
        ours = gradients()
    for have, expected in zip(ours, gradients(), strict=True):
        assert torch.equal(have, expected)


def test_no_more_threads_than_the_system_gives():
    """The caller does the share of those that cannot be had."""
    program = """if True:
        import resource, torch
        from tests.ops.recurrence_cases import random_case, run
        case = random_case(batch=200, dtype=torch.float32)
        results = []
        for spare in (None, 40):  # MiB of address space: stacks of threads take 8 each
            if spare:
                used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
                resource.setrlimit(resource.RLIMIT_AS, (used + spare * 2**20,) * 2)
            results.append(run(case, backend="cpu"))
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    """
    environment = {**os.environ, "KRON_NUM_THREADS": "12"}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)


def test_the_scale_of_factors_may_be_far_from_one():
    """Where what W^H hands on leaves single precision, though no factor's own gradient does."""
    exact = random_case([(2, 2)] * 4, 3, 1)
    exact = exact._replace(
        factors=[(1e-11 * w).detach().requires_grad_() for w in exact.factors],
        activation="identity",
        bias=torch.zeros(32, dtype=torch.float64, requires_grad=True),
    )
    factors = slice(3, 7)  # behind states, the last one and x
    have = run(cast(exact, torch.float32), backend="cpu")[factors]
    expected = run(exact, backend="reference")[factors]
    for ours, theirs in zip(have, expected, strict=True):
        assert float((ours.to(theirs.dtype) - theirs).norm()) < 1e-5 * float(theirs.norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_both_ways_to_the_factors_gradient(dtype, monkeypatch):
    exact = random_case(PAIRS["2x2s"], 9, 12)
    expected = run(exact, backend="reference")
    case = cast(exact, dtype)
    tolerance = 1e-4 if dtype == torch.float32 else 1e-12
    results = {}
    for limit in (0.0, 1e3):
        monkeypatch.setitem(solve.MAX_CONDITION, dtype, limit)
        results[limit] = run(case, backend="cpu")
        assert worst_error(results[limit], expected) < tolerance
    assert any(not torch.equal(a, b) for a, b in zip(results[0.0], results[1e3], strict=True))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("is_complex", [True, False])
def test_half_precision_is_storage_only(backend, dtype, is_complex):
    """Equal to float32 of the same numbers, rounded at the end."""
    names = ("x", "bias", "h0", "weight", "d_states", "d_last")
    case = cast(
        random_case(form="features", is_complex=is_complex, with_lengths=True), torch.float32
    )
    half = {name: getattr(case, name).detach().to(dtype) for name in names}
    single = {name: tensor.float() for name, tensor in half.items()}
    results, expected = (
        run(case._replace(**{n: t.requires_grad_() for n, t in tensors.items()}), backend=backend)
        for tensors in (half, single)
    )
    assert [r.dtype for r in results].count(dtype) == 6
    for have, want in zip(results, expected, strict=True):
        torch.testing.assert_close(have, want.to(have.dtype))


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.uint16, torch.uint32])
def test_tokens_of_any_type(dtype):
    case = random_case(form="tokens")
    expected, have = (run(c, backend="cpu") for c in (case, case._replace(x=case.x.to(dtype))))
    assert all(map(torch.equal, have, expected))


def test_tokens_out_of_range():
    case = random_case(form="tokens")
    with pytest.raises(IndexError, match="tokens"):
        run(case._replace(x=case.x + 3), backend="cpu")
