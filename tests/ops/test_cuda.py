"""The CUDA kernels and their host side against the definition: on the GPU if there is one, else
compiled for the CPU."""

import math
import subprocess

import pytest
import torch

from kron_plugin.ops import dense, inputs, kron_matmul
from kron_plugin.ops.recurrence import cuda as recurrence

from . import cuda_on_cpu, test_operators
from .recurrence_cases import (
    KINDS,
    ONE_OF_EACH_CELL,
    SHAPES,
    cast,
    equal,
    forward,
    placed,
    random_case,
    run,
    worst_error,
)
from .recurrence_contract import FusedContract

on_the_cpu = pytest.mark.skipif(torch.cuda.is_available(), reason="for the stand-in of a GPU")
cells = pytest.mark.parametrize("kind", ONE_OF_EACH_CELL)
DOUBLE, SINGLE = torch.float64, torch.float32


@pytest.fixture(scope="module")
def libraries(tmp_path_factory):
    return tmp_path_factory.mktemp("kernels")


@pytest.fixture(autouse=True)
def cuda(monkeypatch, libraries):
    """The GPU, or a stand-in for it, for `backend="cuda"`."""
    if not torch.cuda.is_available():
        cuda_on_cpu.install(monkeypatch, libraries)


class TestCUDA(FusedContract):
    backend = "cuda"
    most = 3
    is_exact = False  # sums over steps are made segment by segment
    shapes = {  # noqa: RUF012
        "2x2s": [(2, 2)] * 4,
        "tall first": SHAPES["tall first"],
        "mixed": [(2, 2), (3, 3), (2, 2), (2, 2)],
        "one": [(5, 5)],
    }


# 2x2 factors inside threads, by shuffle, through shared memory, several sequences per warp; more
# 2x2 factors than a thread takes; vectors of one number.
# (factors, batch, steps, type, kind, form, lengths, options)
CASES = [
    ([(2, 2)] * 2, 3, 5, DOUBLE, "kru", "dense", True, {}),
    ([(2, 2)] * 6, 3, 5, DOUBLE, "kru", "features", True, {"checkpoint_every": 2}),
    ([(2, 2)] * 5, 1, 1, DOUBLE, "real modrelu", "dense", False, {}),
    ([(2, 2)] * 7, 1, 5, SINGLE, "complex identity", "tokens", True, {}),
    ([(2, 2)] * 8, 3, 5, SINGLE, "kru", "dense", True, {"checkpoint_every": 3}),
    ([(2, 2)] * 9, 1, 5, SINGLE, "kru", "features", False, {"need_output": False}),
    ([(2, 2)] * 9, 1, 2, SINGLE, "real identity", "dense", True, {}),
    ([(2, 2)] * 10, 3, 1, SINGLE, "kru", "dense", False, {}),
    ([(2, 2)] * 11, 1, 1, SINGLE, "kru", "dense", False, {}),
    (SHAPES["3,137"], 1, 2, DOUBLE, "complex identity", "dense", False, {}),
    (SHAPES["3,137"], 1, 1, SINGLE, "lstm", "dense", False, {}),
    ([(2, 2)], 3, 5, DOUBLE, "kru", "dense", True, {}),
    ([(1, 1)], 3, 5, DOUBLE, "kru", "features", True, {}),
]


def check(case):
    shapes, batch, steps, dtype, kind, form, with_lengths, options = case
    exact = random_case(KINDS[kind], shapes, batch, steps, form, with_lengths)
    expected = run(exact, "reference", need_output=options.get("need_output", True))
    results = run(cast(exact, dtype), "cuda", **options)
    assert worst_error(results, expected) < (1e-11 if dtype == DOUBLE else 5e-5)


@pytest.mark.parametrize("index", range(len(CASES)))
def test_equals_the_reference(index):
    check(CASES[index])


@on_the_cpu
@pytest.mark.parametrize("kind", ["kru", "complex identity", "lstm"])
def test_vectors_too_long_for_shared_memory(kind, monkeypatch):
    monkeypatch.setitem(cuda_on_cpu.H100, "MaxSharedMemoryPerBlockOptin", 1024)
    check((SHAPES["mixed"], 3, 5, DOUBLE, kind, "tokens", True, {"checkpoint_every": 2}))


@pytest.mark.parametrize("form", ["features", "tokens"])
@pytest.mark.parametrize("need_output", [True, False])
@pytest.mark.parametrize("shapes", [[(2, 2)] * 4, [(3, 3), (2, 2)]])
@cells
def test_the_sweep_back_in_parts(kind, shapes, need_output, form, monkeypatch):
    case = random_case(KINDS[kind], shapes, 3, 5, form, True)
    arrays = 2 if kind == "kru" else 4 * 4  # of one step, for two steps at a time
    monkeypatch.setattr(recurrence, "SEGMENT_BYTES", arrays * case.state[0].numel() * 8)
    expected = run(case, "reference", need_output=need_output)
    assert worst_error(run(case, "cuda", need_output=need_output), expected) < 1e-12


@cells
def test_saved_tensors_may_have_been_elsewhere_meanwhile(kind):
    """As hooks on saved tensors may have it: in another layout, at any address."""
    case = placed(random_case(KINDS[kind], [(2, 2)] * 4, 3, 5, dtype=SINGLE), "cuda")

    def shift(saved):
        flat = torch.cat([saved.new_empty(1), saved.flatten()])
        return flat[1:].view_as(saved) if saved.dim() < 3 else saved.transpose(-1, -2).contiguous()

    def unshift(saved):
        return saved if saved.dim() < 3 else saved.transpose(-1, -2)

    expected = run(case, "cuda")
    with torch.autograd.graph.saved_tensors_hooks(shift, unshift):
        assert equal(run(case, "cuda"), expected)


@pytest.mark.parametrize("bad", [-5, 3, 1000])
@cells
def test_a_token_that_is_no_symbol_makes_the_state_nan_and_is_read_nowhere(kind, bad):
    case = placed(random_case(KINDS[kind], [(2, 2)] * 3, 2, 3, "tokens"), "cuda")
    case.x[1, 0] = bad
    outputs, state = forward(case, "cuda")
    assert outputs[0].isfinite().all()
    assert outputs[:, 1].isfinite().all()
    assert outputs[1:, 0].isnan().all()
    (gradient,) = torch.autograd.grad(state[0][1].sum(), case.weight)
    assert gradient.shape == case.weight.shape


@pytest.mark.parametrize("most", [0, 512])
def test_sums_over_the_rows_of_each_symbol(most, monkeypatch):
    """By index or by a matrix product, in parts. Tokens that are not symbols are ignored."""
    monkeypatch.setattr(inputs, "MAX_ONE_HOT", most)
    monkeypatch.setattr(inputs, "ONE_HOT_ENTRIES", 8)
    tokens, rows, weight = placed(
        (torch.tensor([[0, 1], [1, 1], [-1, 3], [0, 7]]), torch.randn(4, 2, 5), torch.randn(4, 5)),
        "cuda",
    )
    rows[2, 0] = rows[3, 1] = math.nan
    sums = inputs.input_gradient(tokens, weight, rows, rows.new_empty(0))
    expected = [rows[0, 0] + rows[3, 0], rows[0, 1] + rows[1].sum(0), 0 * rows[0, 0], rows[2, 1]]
    torch.testing.assert_close(sums.float(), torch.stack(expected))


def test_arrays_that_start_anywhere():
    case = placed(random_case(shapes=[(2, 2)] * 4, dtype=SINGLE), "cuda")
    flat = torch.cat([case.x.new_zeros(1), case.x.detach().reshape(-1)])
    shifted = case._replace(x=flat[1:].view_as(case.x).requires_grad_())
    assert shifted.x.data_ptr() % 16 != 0
    assert equal(run(shifted, "cuda"), run(case, "cuda"))


@pytest.mark.parametrize("dtype", [SINGLE, DOUBLE, torch.complex64, torch.complex128])
@pytest.mark.parametrize("shapes", [[(2, 2)] * 6, [(3, 2), (2, 2), (1, 4)], [(2, 2)] * 12])
def test_product(shapes, dtype):
    factors = [torch.randn(p, q, dtype=dtype, requires_grad=True) for p, q in shapes]
    x = torch.randn(2, 3, dense(factors).shape[1], dtype=dtype, requires_grad=True)
    upstream = torch.randn(2, 3, dense(factors).shape[0], dtype=dtype)

    def results(backend):
        here, matrices, gradient = placed((x, factors, upstream), backend)
        y = kron_matmul(here, matrices, backend=backend)
        return [y, *torch.autograd.grad(y, [here, *matrices], gradient)]

    tolerance = 2e-5 if dtype in (SINGLE, torch.complex64) else 1e-12
    assert worst_error(results("cuda"), results("reference")) < tolerance


@on_the_cpu
@cells
def test_a_call_with_what_does_not_fit_raises(kind):
    test_operators.check_wrong_calls(kind, "cuda")


# The kernels for 2x2 factors, and those for a cell.
RACES = """
#include "cells/{cell}.cuh"
#include "butterfly.cu"
#include "stages.cu"
template <class Kernel>
void run(Kernel kernel, unsigned blocks, unsigned threads, size_t shared, const Call& call) {{
  run_on_cpu(kernel, {{blocks, 1, 1}}, {{threads, 1, 1}}, shared, call);
}}
int main() {{
  constexpr int F = 9, N = 1 << F, T = 2, B = 2, C = {parts};
  std::vector<float> arrays[17];
  for (auto& array : arrays) array.assign(T * B * S * K * C * N + 4 * C * F * 8, 0.25f);
  Call call = {{}};
  call.steps = T, call.batch = B, call.size = call.capacity = N;
  int next = 0;
  for (const void** to : {{&call.x, &call.bias, &call.factors, &call.initial, &call.recurrent,
                          &call.d_outputs, &call.d_last}})
    *to = arrays[next++].data();
  for (void** to : {{&call.outputs, &call.kept, &call.last, &call.delta, &call.d_input,
                    &call.d_bias, &call.d_initial, &call.d_factors}})
    *to = arrays[next++].data();
"""
BUTTERFLY = """
  const size_t exchange = 2 * N * C * 4;
  run(butterfly_forward<float, C, F, kDense, kModrelu>, B, N / 4, exchange, call);
  run(butterfly_backward<float, C, F, kModrelu>, B, N / 4, exchange, call);
  run(butterfly_product<float, C, F>, 1, N / 4, exchange, call);
  call.initial_rows = B;
  run(butterfly_gradient<float, C, F>, 1, N / 4, exchange + 4 * F * C * 4, call);
  call.initial_rows = 0;
"""
STAGES = """
  call.cached = 4 * 3 + 16 * 16 + 4 * 2;
  for (Plan& plan : call.plans)
    plan = {3, N, {{8, 8, 3, 16 * 16 + 4 * 4}, {16, 16, 0, 8}, {4, 4, 2, 4}}};
  const size_t vectors = (kVectors * N + call.cached) * C * 4;
  run(stages_forward<float, C>, B, 64, vectors, call);
  run(stages_backward<float, C>, B, 64, vectors, call);
  run(stages_product<float, C>, 1, 64, vectors, call);
  std::puts("done");
}
"""


@on_the_cpu
@pytest.mark.parametrize("barriers", [True, False])
@cells
def test_thread_sanitizer_finds_no_race(kind, barriers, tmp_path):
    """Without barriers it finds some, so it does look."""
    program = tmp_path / "races"
    flags = ("-fsanitize=thread", "-g", *(() if barriers else ("-DKRON_NO_BARRIERS",)))
    kind = KINDS[kind]
    source = RACES.format(cell=kind.cell, parts=1 + kind.is_complex)
    if kind.cell == "rnn":
        source += BUTTERFLY
    else:
        source = source.replace('#include "butterfly.cu"\n', "")
    cuda_on_cpu.compile_for_cpu(source + STAGES, program, flags)
    result = subprocess.run([program], capture_output=True, text=True, timeout=120)
    assert ("WARNING: ThreadSanitizer: data race" in result.stderr) == (not barriers)
    if barriers:
        assert (result.returncode, result.stdout) == (0, "done\n"), result.stderr[:2000]
