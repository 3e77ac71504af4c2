"""What only a GPU can show of the CUDA backend. The cases of test_cuda.py, test_kron_rnn.py and
test_kron_lstm.py run on it as well."""

import pytest
import torch

from kron_plugin.ops import kron_matmul, kron_rnn

from .recurrence_cases import cast, placed, random_case, run, worst_error

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")


def case_of(bits, batch, steps, **kwargs):
    return cast(random_case([(2, 2)] * bits, batch, steps, **kwargs), torch.float32)


@pytest.mark.parametrize(("bits", "batch"), [(9, 128), (7, 20), (4, 4096), (13, 3), (14, 2)])
def test_large_problems(bits, batch):
    """As near to the definition in double precision as the definition in single precision is."""
    exact = random_case([(2, 2)] * bits, batch, 20, form="features", with_lengths=True)
    case = cast(exact, torch.float32)
    expected = run(exact, backend="reference")
    reached = worst_error(run(case, backend="reference"), expected)
    assert worst_error(run(case, backend="cuda"), expected) < 4 * reached + 1e-6


def test_two_runs_give_the_same_bits():
    case = case_of(9, 128, 50, form="tokens")
    first, second = (run(case, backend="cuda") for _ in range(2))
    assert all(map(torch.equal, first, second))


def test_another_stream_and_no_synchronisation():
    case = placed(case_of(9, 16, 20, with_lengths=True), "cuda")
    expected = run(case, backend="cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.cuda.stream(stream):
            results = run(case, backend="cuda")
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
        run(here, backend="cuda")
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = run(here, backend="cuda")
    with torch.no_grad():
        x.copy_(torch.randn_like(x))
    graph.replay()
    assert worst_error(results, run(here, backend="cuda")) == 0.0


def test_auto_takes_the_kernels():
    case = placed(case_of(5, 3, 4), "cuda")
    auto, _ = kron_rnn(case.x, case.factors, case.bias, case.h0)
    ours, _ = kron_rnn(case.x, case.factors, case.bias, case.h0, backend="cuda")
    assert torch.equal(auto, ours)
    vectors = torch.randn(5, 32, device="cuda", dtype=torch.complex64)
    expected = kron_matmul(vectors, case.factors, backend="reference")
    torch.testing.assert_close(kron_matmul(vectors, case.factors), expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_the_second_gpu():
    case = case_of(9, 16, 20)
    on_second = [t.detach().to("cuda:1") for t in (case.x, case.bias, case.h0)]
    factors = [w.detach().to("cuda:1") for w in case.factors]
    states, _ = kron_rnn(on_second[0], factors, on_second[1], on_second[2], backend="cuda")
    expected, _ = kron_rnn(case.x, case.factors, case.bias, case.h0, backend="reference")
    assert worst_error([states.cpu()], [expected]) < 1e-4
