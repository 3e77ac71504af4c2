"""Tests of the CUDA backend that need a GPU. The cases of test_cuda.py run on it as well."""

from functools import partial

import pytest
import torch
from torch.utils._pytree import tree_map_only

from kron_plugin.ops import kron_matmul

from .recurrence_cases import KRU, cast, equal, forward, placed, random_case, run, worst_error

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")


def case_of(bits, batch, steps, **kwargs):
    return random_case(KRU, [(2, 2)] * bits, batch, steps, dtype=torch.float32, **kwargs)


@pytest.mark.parametrize(("bits", "batch"), [(9, 128), (7, 20), (4, 4096), (13, 3), (14, 2)])
def test_large_problems(bits, batch):
    """The error is about that of the definition in single precision."""
    exact = random_case(KRU, [(2, 2)] * bits, batch, 20, "features", True)
    case = cast(exact, torch.float32)
    expected = run(exact, "reference")
    reached = worst_error(run(case, "reference"), expected)
    assert worst_error(run(case, "cuda"), expected) < 4 * reached + 1e-6


def test_two_runs_give_the_same_bits():
    case = case_of(9, 128, 50, form="tokens")
    assert equal(run(case, "cuda"), run(case, "cuda"))


def test_another_stream_and_no_synchronisation():
    case = placed(case_of(9, 16, 20, with_lengths=True), "cuda")
    expected = run(case, "cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.cuda.stream(stream):
            results = run(case, "cuda")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    assert worst_error(results, expected) == 0.0


def test_graph_capture():
    case = placed(case_of(9, 16, 20, form="features"), "cuda")
    x = case.x.detach().clone().requires_grad_()
    here = case._replace(x=x)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run(here, "cuda")
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = run(here, "cuda")
    with torch.no_grad():
        x.copy_(torch.randn_like(x))
    graph.replay()
    assert worst_error(results, run(here, "cuda")) == 0.0


def test_auto_takes_the_kernels():
    case = placed(case_of(5, 3, 4), "cuda")
    assert torch.equal(forward(case, "auto")[0], forward(case, "cuda")[0])
    vectors = torch.randn(5, 32, device="cuda", dtype=torch.complex64)
    expected = kron_matmul(vectors, case.factors[0], backend="reference")
    torch.testing.assert_close(kron_matmul(vectors, case.factors[0]), expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_the_second_gpu():
    case = case_of(9, 16, 20)
    move = partial(tree_map_only, torch.Tensor, lambda t: t.detach().to("cuda:1"))
    outputs, _ = forward(move(case), "cuda")
    expected, _ = forward(case, "reference")
    assert worst_error([outputs.cpu()], [expected]) < 1e-4
