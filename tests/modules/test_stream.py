"""Streams against the whole sequence, by the kernel and by calls of `step`."""

import copy
import pickle
import subprocess
import sys

import pytest
import torch

from kron_plugin import modules
from kron_plugin.modules import KRU, KRULSTM
from kron_plugin.ops.recurrence.stream import KernelStream, StepStream

KINDS = {
    "kru": {"complex": True},
    "real kru": {"complex": False, "activation": "tanh"},
    "kru_lstm": {},
    "kru_gru": {},
}
BACKENDS = {"cpu": KernelStream, "reference": StepStream}
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-13}


def make(kind, size=5, hidden=8, dtype=torch.float32, **options):
    torch.manual_seed(0)
    cell = modules.CELLS[kind.split()[-1]]
    return cell(size, hidden, **{**KINDS[kind], "backend": "cpu", **options}, dtype=dtype)


def parts(state):
    return state if isinstance(state, tuple) else (state,)


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(parts(a), parts(b), strict=True))


def whole(stack, x, state=None):
    with torch.no_grad():
        return stack(x, state)


def assert_equals_the_whole(stack, x, tolerance=None):
    """By outputs and by the last state, from the layers' own state and from another one."""
    tolerance = tolerance or TOLERANCE[stack.layers[0].weight.dtype]
    for state in (None, whole(stack, x)[1]):
        expected, last = whole(stack, x, state)
        stream = stack.stream(x.shape[1], state)
        assert isinstance(stream._engine, BACKENDS[stack.layers[0].backend])
        for x_t, h in zip(x, expected, strict=True):
            torch.testing.assert_close(stream(x_t), h, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(stream.state, last, rtol=tolerance, atol=tolerance)


def inputs(form, batch, size=5, dtype=torch.float32, steps=6):
    if form == "tokens":
        return torch.randint(size, (steps, batch))
    return torch.randn(steps, batch, size, dtype=dtype)


@pytest.mark.parametrize("form", ["features", "tokens"])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_is_the_whole_sequence(kind, backend, dtype, form):
    for layers in (1, 2, 3):
        for batch in (1, 3, 16, 20):
            stack = make(kind, num_layers=layers, backend=backend, dtype=dtype)
            assert_equals_the_whole(stack, inputs(form, batch, dtype=dtype))


@pytest.mark.parametrize("factors", ["2,2,2,2,2", "4,8", "32", "2x4,16x8", "32x1,1x32"])
@pytest.mark.parametrize("kind", KINDS)
def test_factors_of_any_sizes(kind, factors):
    assert_equals_the_whole(make(kind, hidden=32, factors=factors), inputs("features", 3))


@pytest.mark.parametrize("size", [1, 8, 9, 10, 11, 12, 300])
@pytest.mark.parametrize("kind", KINDS)
def test_any_number_of_features(kind, size):
    for batch in (1, 5):
        assert_equals_the_whole(make(kind, size), inputs("features", batch, size))


@pytest.mark.parametrize("kind", KINDS)
def test_one_layer_has_the_same_bits(kind):
    stack, x = make(kind), inputs("features", 20)
    expected, last = whole(stack, x)
    stream = stack.stream(20)
    assert torch.equal(torch.stack([stream(x_t) for x_t in x]), expected)
    assert same(stream.state, last)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_is_computed_in_single(kind, backend, dtype):
    stack, x = make(kind, dtype=dtype, backend=backend), inputs("features", 2, dtype=dtype)
    expected, last = whole(stack, x)
    stream = stack.stream(2)
    assert torch.equal(torch.stack([stream(x_t) for x_t in x]), expected)
    assert same(stream.state, last)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_single_sequence_may_lack_its_axis(backend):
    stack, x = make("kru_lstm", backend=backend, num_layers=2), inputs("features", 1)
    stream, alone = stack.stream(), stack.stream()
    for x_t in x:
        assert torch.equal(stream(x_t), alone(x_t[0]).unsqueeze(0))
    token = torch.tensor([3])
    assert torch.equal(stream(token), alone(token[0]).unsqueeze(0))
    assert stream.state[0].shape == (2, 1, 8)
    alone.reset(tuple(part.squeeze(1) for part in stream.state))
    assert same(alone.state, stream.state)


@pytest.mark.parametrize("backend", BACKENDS)
def test_both_forms_of_input_may_alternate(backend):
    stack, state = make("kru", backend=backend), None
    stream = stack.stream(2)
    for x_t in (torch.tensor([1, 4]), torch.randn(2, 5), torch.tensor([0, 2], dtype=torch.uint8)):
        with torch.no_grad():
            state = stack.step(x_t, state)
        torch.testing.assert_close(stream(x_t), state[0])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_fork_reset_and_state(kind, backend):
    stack, x = make(kind, backend=backend, num_layers=2), inputs("features", 3)
    stream = stack.stream(3)
    first = [stream(x_t) for x_t in x]
    middle = stream.state
    forks = [stream.fork(), copy.copy(stream), copy.deepcopy(stream)]
    later = [stream(x_t) for x_t in x]
    for fork in forks:
        assert same(fork.state, middle)
        assert same(tuple(fork(x_t) for x_t in x), tuple(later))
    stream.state = middle
    assert same(tuple(stream(x_t) for x_t in x), tuple(later))
    stream.reset(middle)
    assert same(stream.state, middle)
    stream.reset()
    assert same(tuple(stream(x_t) for x_t in x), tuple(first))
    for part in parts(stream.state):
        part.zero_()  # a copy
    assert same(stream.state, middle)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_fork_goes_on_reading_tokens(backend):
    stream = make("kru", backend=backend).stream()
    stream(torch.tensor([1]))
    fork = stream.fork()
    assert torch.equal(fork(torch.tensor([2])), stream(torch.tensor([2])))


@pytest.mark.parametrize("backend", BACKENDS)
def test_results_belong_to_the_caller(backend):
    stack, x = make("kru", backend=backend), inputs("features", 1)
    stream, other = stack.stream(), stack.stream()
    kept = stream(x[0])
    expected = other(x[0])
    assert not kept.requires_grad
    latest = stream(x[1])
    assert torch.equal(kept, expected)
    other(x[1])
    latest.zero_()
    assert torch.equal(stream(x[2].clone().requires_grad_()), other(x[2]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_it_does_not_follow_training(backend):
    stack, x = make("kru_gru", backend=backend, num_layers=2), inputs("features", 2)
    stream = stack.stream(2)
    first = stream(x[0])
    with torch.no_grad():
        for parameter in stack.parameters():
            parameter.zero_()
    stream.reset()
    assert torch.equal(stream(x[0]), first)


@pytest.mark.parametrize("unitary", ["none", "hard"])
def test_without_dropout_gradients_and_autocast(unitary):
    stack, x = make("kru", num_layers=2, dropout=0.5, unitary=unitary), inputs("features", 3)
    stack.eval()
    expected, _ = whole(stack, x)
    stack.train()
    with torch.autocast("cpu"):
        stream = stack.stream(3)
        outputs = torch.stack([stream(x_t) for x_t in x])
        torch.testing.assert_close(outputs, expected, rtol=1e-5, atol=1e-5)
        stream(x[0].bfloat16())
    with pytest.raises(ValueError, match="x_t: has type"):
        stream(x[0].bfloat16())


def test_inputs_in_another_layout():
    stack = make("kru", size=3)
    stream, other = stack.stream(2), stack.stream(2)
    x = torch.randn(3, 2)
    assert torch.equal(stream(x.T), other(x.T.contiguous()))
    stack = make("kru", size=1)
    stream, other = stack.stream(), stack.stream()
    negative = torch.randn(1, dtype=torch.complex64).conj().imag
    assert negative.is_neg()
    assert torch.equal(stream(negative), other(negative.resolve_neg()))
    assert torch.equal(stream(torch.nn.Parameter(torch.ones(1))), other(torch.ones(1)))


WRONG = {
    "shape": torch.zeros(2, 4),
    "too many sequences": torch.zeros(3, 5),
    "no axis B": torch.zeros(5),
    "another axis": torch.zeros(1, 2, 5),
    "symbols of a whole sequence": torch.zeros(2, 5, dtype=torch.long),
    "type": torch.zeros(2, 5, dtype=torch.float64),
    "bool": torch.zeros(2, dtype=torch.bool),
    "complex": torch.zeros(2, 5, dtype=torch.complex64),
    "device": torch.zeros(2, 5, device="meta"),
    "list": [0.0] * 5,
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("wrong", WRONG)
def test_an_input_that_does_not_fit_is_refused(wrong, backend):
    stream = make("kru", backend=backend).stream(2)
    before = stream.state
    with pytest.raises(ValueError, match=r"^x_t: "):
        stream(WRONG[wrong])
    assert same(stream.state, before)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("token", [5, -1])
def test_a_token_without_a_row_is_refused(token, backend):
    stream = make("kru", backend=backend, num_layers=2).stream(2)
    stream(torch.tensor([0, 4]))
    before = stream.state
    with pytest.raises(IndexError, match=r"from 0 to 4|out of range"):
        stream(torch.tensor([0, token]))
    assert same(stream.state, before)


@pytest.mark.parametrize("count", [0, -1, 1.5, "2"])
def test_batch_sizes(count):
    with pytest.raises((ValueError, TypeError), match="batch_size"):
        make("kru").stream(count)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ((torch.zeros(1, 2, 16),) * 2, "has 2 tensors; KRU has 1"),
        (torch.zeros(1, 1, 16), "has shape"),
        (torch.zeros(1, 16), "has shape"),
        (torch.zeros(1, 2, 16).double(), "torch.float64"),
        (torch.zeros(1, 2, 16, device="meta"), "meta"),
        ("zero", "must be a tensor"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(state, message):
    stack = make("kru")
    with pytest.raises(ValueError, match=f"^state: .*{message}"):
        stack.stream(2, state)
    stream = stack.stream(2)
    with pytest.raises(ValueError, match=f"^state: .*{message}"):
        stream.reset(state)
    with pytest.raises(ValueError, match=f"^state: .*{message}"):
        stream.state = state


def test_bidirectional_layers_have_none():
    with pytest.raises(ValueError, match="stream: a bidirectional layer"):
        make("kru", bidirectional=True).stream()


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_not_finite_is_found_on_demand(backend):
    x = torch.full((1, 5), torch.nan)
    assert make("kru", backend=backend).stream()(x).isnan().any()
    with pytest.raises(RuntimeError, match="KRU: the state holds a NaN or an infinity"):
        make("kru", backend=backend, check_finite=True).stream()(x)


def test_without_a_compiler_the_reference_serves(monkeypatch):
    stack, x = make("kru", backend="auto", num_layers=2), inputs("features", 1)
    compiled = stack.stream()
    monkeypatch.setattr("kron_plugin.ops.native.kernel.obstacle", lambda *_: "none here")
    stream = stack.stream()
    assert isinstance(stream._engine, StepStream)
    for x_t in x:
        torch.testing.assert_close(stream(x_t), compiled(x_t))
    with pytest.raises(RuntimeError, match="none here"):
        make("kru").stream()


def test_memory_is_freed_with_the_last_reference():
    """No stream is in a circle of references, which only a later collection would free."""
    stack, closes = make("kru", num_layers=2), []
    for _ in range(1000):
        stream = stack.stream()
        closes.append(stream._engine.close)
        stream(torch.tensor([1]))  # opens another in its place
        closes.append(stream._engine.close)
    assert [close.alive for close in closes[-2:]] == [False, True]
    del stream
    assert not any(close.alive for close in closes)


def test_a_stream_may_live_to_the_end():
    code = "import torch, kron_plugin.modules as m; s = m.KRU(1, 4).stream(); s(torch.ones(1))"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_it_cannot_be_pickled():
    with pytest.raises(TypeError, match="a Stream cannot be pickled"):
        pickle.dumps(make("kru").stream())


def test_subclasses_of_layers_keep_their_options():
    """The first state is h0, and a layer without a bias has none."""
    stack = KRU(2, 4, complex=False, activation="identity", bias=False, backend="cpu")
    assert_equals_the_whole(stack, torch.randn(4, 1, 2))
    assert_equals_the_whole(KRULSTM(2, 4, bias=False, backend="cpu"), torch.randn(4, 1, 2))
