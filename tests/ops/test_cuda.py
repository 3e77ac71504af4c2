"""The CUDA kernels and all of their host side against the definition: on the GPU, if there is one,
and compiled for the CPU otherwise."""

import math
import subprocess

import pytest
import torch

from kron_plugin.ops import dense, inputs, kron_lstm, kron_matmul, kron_rnn
from kron_plugin.ops.kron_rnn import cuda as recurrence

from . import cuda_on_cpu, recurrence_cases
from . import test_kron_lstm as lstm
from . import test_operators as operators
from .recurrence_cases import PAIRS, cast, dense_rnn, placed, random_case, run, worst_error

on_the_cpu = pytest.mark.skipif(torch.cuda.is_available(), reason="for the stand-in of a GPU")


@pytest.fixture(scope="module")
def libraries(tmp_path_factory):
    return tmp_path_factory.mktemp("kernels")


@pytest.fixture(autouse=True)
def cuda(monkeypatch, libraries):
    """What serves `backend="cuda"`."""
    if not torch.cuda.is_available():
        cuda_on_cpu.install(monkeypatch, libraries)


DOUBLE, SINGLE = torch.float64, torch.float32

# (factor sizes, batch, steps, type, complex, activation, form, lengths, options)
CASES = [
    # 2x2 factors: inside threads, by shuffle, through shared memory; several sequences a warp.
    ([(2, 2)] * 2, 3, 5, DOUBLE, True, "modrelu", "dense", True, {}),
    ([(2, 2)] * 4, 9, 2, DOUBLE, False, "tanh", "tokens", False, {"need_output": False}),
    ([(2, 2)] * 6, 3, 5, DOUBLE, True, "modrelu", "features", True, {"checkpoint_every": 2}),
    ([(2, 2)] * 5, 1, 1, DOUBLE, False, "modrelu", "dense", False, {}),
    ([(2, 2)] * 7, 1, 5, SINGLE, True, "identity", "tokens", True, {}),
    ([(2, 2)] * 8, 3, 5, SINGLE, True, "modrelu", "dense", True, {"checkpoint_every": 3}),
    ([(2, 2)] * 9, 1, 5, SINGLE, True, "modrelu", "features", False, {"need_output": False}),
    ([(2, 2)] * 10, 3, 1, SINGLE, True, "modrelu", "dense", False, {}),
    ([(2, 2)] * 9, 1, 2, SINGLE, False, "identity", "dense", True, {}),
    # Any others: odd, rectangular, mixed, one dense one, 2x2 ones too many for a thread.
    ([(3, 3), (5, 5)], 3, 5, DOUBLE, True, "modrelu", "dense", True, {}),
    (PAIRS["wide first"], 1, 5, DOUBLE, True, "modrelu", "features", False, {}),
    (PAIRS["tall first"], 3, 1, DOUBLE, False, "tanh", "tokens", False, {}),
    (PAIRS["mixed"], 3, 5, DOUBLE, True, "modrelu", "tokens", True, {"checkpoint_every": 2}),
    (PAIRS["one"], 3, 5, DOUBLE, False, "modrelu", "dense", True, {"need_output": False}),
    (PAIRS["3,137"], 1, 2, DOUBLE, True, "identity", "dense", False, {}),
    ([(2, 2)] * 11, 1, 1, SINGLE, True, "modrelu", "dense", False, {}),
    ([(2, 2)], 3, 5, DOUBLE, True, "modrelu", "dense", True, {}),
    ([(1, 1)], 3, 5, DOUBLE, True, "modrelu", "features", True, {}),
    # No sequence at all.
    ([(2, 2)] * 4, 0, 5, DOUBLE, True, "modrelu", "features", True, {}),
    ([(3, 3), (2, 2)], 0, 5, DOUBLE, True, "modrelu", "tokens", False, {"checkpoint_every": 2}),
]


def make(case):
    shapes, batch, steps, dtype, is_complex, activation, form, with_lengths, options = case
    exact = random_case(shapes, batch, steps, DOUBLE, is_complex, activation, form, with_lengths)
    return exact, cast(exact, dtype), options


def check(case):
    exact, case_here, options = make(case)
    expected = run(exact, backend="reference", need_output=options.get("need_output", True))
    assert worst_error(run(case_here, backend="cuda", **options), expected) < (
        1e-11 if case[3] == DOUBLE else 5e-5
    )


@pytest.mark.parametrize("index", range(len(CASES)))
def test_equals_the_reference(index):
    check(CASES[index])


@on_the_cpu
@pytest.mark.parametrize("index", [12, 14])
def test_vectors_too_long_for_shared_memory(index, monkeypatch):
    monkeypatch.setitem(cuda_on_cpu.H100, "MaxSharedMemoryPerBlockOptin", 1024)
    check(CASES[index])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shapes", [[(2, 2)] * 4, [(3, 3), (2, 2)]])
@pytest.mark.parametrize("is_complex", [True, False])
def test_half_precision_is_storage_only(dtype, shapes, is_complex):
    """Results differ by the rounding of what is stored: eleven or eight binary digits."""
    exact = random_case(shapes, 3, 5, is_complex=is_complex, with_lengths=True)
    half = cast(exact, SINGLE)
    names = ("x", "bias", "h0", "d_states", "d_last")
    half = half._replace(
        **{n: getattr(half, n).detach().to(dtype).requires_grad_() for n in names[:3]},
        **{n: getattr(half, n).to(dtype) for n in names[3:]},
    )
    rounded = half._replace(
        **{n: getattr(half, n).detach().double().requires_grad_() for n in names}
    )
    rounded = rounded._replace(factors=exact.factors)
    expected = run(rounded, backend="reference")
    tolerance = 4e-3 if dtype == torch.float16 else 3e-2
    for options in ({}, {"checkpoint_every": 2}):
        results = run(half, backend="cuda", **options)
        assert results[0].dtype == results[2].dtype == dtype
        assert worst_error(results, expected) < tolerance


@pytest.mark.parametrize("shapes", [[(2, 2)] * 2, [(3, 3), (1, 1)]])
def test_gradcheck(shapes):
    case = placed(random_case(shapes, 2, 2, form="features", with_lengths=True), "cuda")

    def function(x, bias, h0, weight, *factors):
        return kron_rnn(x, factors, bias, h0, case.lengths, weight=weight, backend="cuda")

    leaves = (case.x, case.bias, case.h0, case.weight, *case.factors)
    assert torch.autograd.gradcheck(function, leaves, fast_mode=True)


@pytest.mark.parametrize("off", [-100.0, -math.inf])
def test_factors_far_from_unitary(off):
    case = random_case([(2, 2)] * 4, batch=2, steps=3)
    with torch.no_grad():
        case.factors[0].zero_()
        case.factors[1].copy_(torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
        case.bias[:4] = off
    results, expected = run(case, backend="cuda"), run(case, dense_rnn)
    assert worst_error(results, expected) < 1e-12


@pytest.mark.parametrize("shapes", [[(2, 2)] * 6, [(3, 3), (2, 2)]])
def test_two_runs_give_the_same_bits(shapes):
    case = random_case(shapes, 5, 4, SINGLE, form="tokens")
    first, second = (run(case, backend="cuda") for _ in range(2))
    assert all(map(torch.equal, first, second))


@pytest.mark.parametrize("form", ["features", "tokens"])
def test_the_sweep_back_in_parts(form, monkeypatch):
    case = random_case([(2, 2)] * 4, 3, 5, form=form, with_lengths=True)
    monkeypatch.setattr(recurrence, "DELTA_BYTES", 2 * case.h0.numel() * 8)
    assert worst_error(run(case, backend="cuda"), run(case, backend="reference")) < 1e-12


def test_a_token_that_is_no_symbol_makes_the_state_nan():
    case = placed(random_case([(2, 2)] * 3, batch=2, steps=3, form="tokens"), "cuda")
    tokens = case.x.clone()
    tokens[1, 0] = 3
    states, last = kron_rnn(
        tokens, case.factors, case.bias, case.h0, weight=case.weight, backend="cuda"
    )
    assert states[0].isfinite().all()
    assert states[1:, 0].isnan().all()
    assert last[1].isfinite().all()
    (gradient,) = torch.autograd.grad(last[1].sum(), case.weight)  # reads and writes no row of it
    assert gradient.shape == case.weight.shape


@pytest.mark.parametrize("bad", [-5, 1000])
def test_a_token_that_is_no_symbol_is_read_nowhere(bad):
    case = placed(lstm.random_case(batch=2, steps=3, form="tokens"), "cuda")
    tokens = case.x.clone()
    tokens[1, 0] = bad
    outputs, (h, c) = kron_lstm(tokens, *case[1:4], weight=case.weight, backend="cuda")
    assert outputs[:, 1].isfinite().all()
    assert outputs[1:, 0].isnan().all()
    torch.autograd.grad(h.sum() + c.sum(), case.leaves())


@pytest.mark.parametrize("most", [0, 512])
def test_sums_over_the_rows_of_each_symbol(most, monkeypatch):
    """By index or by a matrix product, in parts; a token that is no symbol counts nowhere."""
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
    case = placed(random_case([(2, 2)] * 4, 3, 2, SINGLE), "cuda")
    flat = torch.cat([case.x.new_zeros(1), case.x.detach().reshape(-1)])
    shifted = case._replace(x=flat[1:].view_as(case.x).requires_grad_())
    assert shifted.x.data_ptr() % 16 != 0
    assert worst_error(run(shifted, backend="cuda"), run(case, backend="cuda")) == 0.0


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


# (factor sizes, batch, steps, form, lengths, options)
LSTM_CASES = [
    ("2x2s", 3, 5, "dense", True, {}),
    ("rectangular", 1, 5, "tokens", True, {"checkpoint_every": 2}),
    ("each its own", 3, 5, "features", True, {"need_output": False}),
    ("one", 3, 1, "dense", False, {}),
    ("3,137", 1, 1, "dense", False, {}),
    ("2x2s", 0, 5, "features", True, {}),
]


@pytest.mark.parametrize("dtype", [DOUBLE, SINGLE])
@pytest.mark.parametrize("index", range(len(LSTM_CASES)))
def test_lstm_equals_the_reference(index, dtype):
    name, batch, steps, form, with_lengths, options = LSTM_CASES[index]
    torch.manual_seed(0)
    exact = lstm.random_case(lstm.GATES[name], batch, steps, form, with_lengths)
    torch.manual_seed(0)
    case = lstm.random_case(lstm.GATES[name], batch, steps, form, with_lengths, dtype)
    need_output = options.get("need_output", True)
    expected = lstm.run(exact, backend="reference", need_output=need_output)
    results = lstm.run(case, backend="cuda", **options)
    assert worst_error(results, expected) < (1e-12 if dtype == DOUBLE else 2e-5)


@pytest.mark.parametrize("form", ["dense", "features"])
def test_lstm_in_bfloat16(form):
    case = lstm.random_case(steps=5, form=form, with_lengths=True, dtype=torch.bfloat16)
    double = case._replace(
        x=case.x.detach().double().requires_grad_(),
        factors=[[w.detach().double().requires_grad_() for w in gate] for gate in case.factors],
        bias=case.bias.detach().double().requires_grad_(),
        weight=None if form == "dense" else case.weight.detach().double().requires_grad_(),
        state=tuple(s.detach().double().requires_grad_() for s in case.state),
    )
    results = lstm.run(case, backend="cuda")
    assert worst_error(results, lstm.run(double, backend="reference")) < 3e-2


@on_the_cpu
@pytest.mark.parametrize("cell", operators.CELLS)
def test_a_call_with_what_does_not_fit_raises(cell):
    operators.check_wrong_calls(cell, "cuda")


@pytest.mark.parametrize("form", ["dense", "features", "tokens"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_stands_beyond_a_length_is_not_read(form, bad):
    for module in (recurrence_cases, lstm):
        case = module.random_case(batch=3, steps=4, form=form, with_lengths=True)
        x, lengths = case.x.detach().clone(), torch.tensor([2, 4, 3])
        x[torch.arange(4).unsqueeze(1) >= lengths] = 1000 if form == "tokens" else bad
        spoilt = case._replace(x=x.requires_grad_(form != "tokens"), lengths=lengths)
        expected = module.run(case._replace(lengths=lengths), backend="cuda")
        assert all(map(torch.equal, module.run(spoilt, backend="cuda"), expected))


RACES = """
#include "pairs.cu"
#include "stages.cu"
#include "lstm.cu"
template <class Kernel, class Arguments>
void run(Kernel kernel, unsigned blocks, unsigned threads, size_t shared, const Arguments& call) {
  run_on_cpu(kernel, {blocks, 1, 1}, {threads, 1, 1}, shared, call);
}
int main() {
  constexpr int F = 9, N = 1 << F, T = 2, B = 2, C = 2;
  std::vector<float> arrays[12];
  for (auto& array : arrays) array.assign(T * B * C * N + 4 * C * F * 8, 0.25f);
  Call call = {};
  call.steps = T, call.batch = B, call.size = call.capacity = N;
  call.x = arrays[0].data(), call.bias = arrays[1].data(), call.factors = arrays[2].data();
  call.h0 = arrays[3].data(), call.states = arrays[4].data(), call.last = arrays[5].data();
  call.d_states = arrays[6].data(), call.d_last = arrays[7].data(), call.delta = arrays[8].data();
  call.d_bias = arrays[9].data(), call.d_h0 = arrays[10].data(), call.d_factors = arrays[11].data();
  const size_t exchange = 2 * N * C * 4;
  run(pairs_forward<float, C, F, kDense, kModrelu>, B, N / 4, exchange, call);
  run(pairs_backward<float, C, F, kModrelu>, B, N / 4, exchange, call);
  run(pairs_product<float, C, F>, 1, N / 4, exchange, call);
  call.first = B;
  run(pairs_gradient<float, C, F>, 1, N / 4, exchange + 4 * F * C * 4, call);
  call.first = 0;
  call.cached = 4 * 3 + 16 * 16 + 4 * 2;
  call.plan = {3, N, {{8, 8, 3, 16 * 16 + 4 * 4}, {16, 16, 0, 8}, {4, 4, 2, 4}}};
  const size_t vectors = (3 * N + call.cached) * C * 4;
  run(stages_forward<float, C>, B, 64, vectors, call);
  run(stages_backward<float, C>, B, 64, vectors, call);
  run(stages_product<float, C>, 1, 64, vectors, call);
  LstmCall lstm = {};
  lstm.steps = T, lstm.batch = B, lstm.size = lstm.capacity = N, lstm.cached = call.cached;
  for (Plan& plan : lstm.plans) plan = call.plan;
  std::vector<float> wide[3];
  for (auto& array : wide) array.assign(T * B * 4 * N, 0.25f);
  lstm.x = lstm.z = wide[0].data(), lstm.bias = wide[1].data(), lstm.factors = call.factors;
  lstm.h0 = lstm.c0 = call.h0, lstm.outputs = arrays[4].data(), lstm.kept = arrays[5].data();
  lstm.h_n = arrays[6].data(), lstm.c_n = arrays[7].data(), lstm.delta = wide[2].data();
  lstm.d_h0 = arrays[8].data(), lstm.d_c0 = arrays[9].data();
  run(lstm_forward<float>, B, 64, (kVectors * N + lstm.cached) * 4, lstm);
  run(lstm_backward<float>, B, 64, (kVectors * N + lstm.cached) * 4, lstm);
  std::puts("done");
}
"""


@on_the_cpu
@pytest.mark.parametrize("barriers", [True, False])
def test_thread_sanitizer_finds_no_race(barriers, tmp_path):
    """And finds some when the barriers are taken away, so it does look."""
    program = tmp_path / "races"
    flags = ("-fsanitize=thread", "-g", *(() if barriers else ("-DKRON_NO_BARRIERS",)))
    cuda_on_cpu.compile_for_cpu(RACES, program, flags)
    result = subprocess.run([program], capture_output=True, text=True, timeout=120)
    assert ("WARNING: ThreadSanitizer: data race" in result.stderr) == (not barriers)
    if barriers:
        assert (result.returncode, result.stdout) == (0, "done\n"), result.stderr[:2000]
