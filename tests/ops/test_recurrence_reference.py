"""The definitions themselves, and the errors for arguments that do not fit."""

import pytest
import torch

from kron_plugin.ops import available_backends, kron_gru, kron_lstm, kron_rnn

from .recurrence_cases import worst_error
from .recurrence_contract import RecurrenceContract

T, B, N = 2, 3, 4


class TestReference(RecurrenceContract):
    backend = "reference"


@pytest.mark.parametrize("backend", available_backends())
def test_one_real_factor_is_the_ordinary_rnn(backend):
    theirs = torch.nn.RNN(3, N).double()
    x, h0 = torch.randn(7, B, 3).double(), torch.randn(B, N).double()
    expected, h_n = theirs(x, h0[None])
    bias, weight = theirs.bias_ih_l0 + theirs.bias_hh_l0, theirs.weight_ih_l0.T
    outputs, last = kron_rnn(
        x, [theirs.weight_hh_l0], bias, h0, weight=weight, activation="tanh", backend=backend
    )
    check_equal(theirs, (outputs, last), (expected, h_n[0]))


@pytest.mark.parametrize("backend", available_backends())
def test_one_factor_a_gate_is_the_ordinary_lstm(backend):
    theirs = torch.nn.LSTM(3, N).double()
    x, h0, c0 = (torch.randn(*s).double() for s in [(7, B, 3), (B, N), (B, N)])
    expected, (h_n, c_n) = theirs(x, (h0[None], c0[None]))
    factors = [[w] for w in theirs.weight_hh_l0.chunk(4)]
    bias, weight = theirs.bias_ih_l0 + theirs.bias_hh_l0, theirs.weight_ih_l0.T
    outputs, state = kron_lstm(x, factors, bias, (h0, c0), weight=weight, backend=backend)
    check_equal(theirs, (outputs, *state), (expected, h_n[0], c_n[0]))


@pytest.mark.parametrize("backend", available_backends())
def test_one_factor_a_gate_is_the_ordinary_gru(backend):
    theirs = torch.nn.GRU(3, N).double()
    x, h0 = torch.randn(7, B, 3).double(), torch.randn(B, N).double()
    expected, h_n = theirs(x, h0[None])
    factors = [[w] for w in theirs.weight_hh_l0.chunk(3)]
    b_ih, b_hh = theirs.bias_ih_l0, theirs.bias_hh_l0
    bias = torch.cat([b_ih[: 2 * N] + b_hh[: 2 * N], b_ih[2 * N :], b_hh[2 * N :]])
    weight = theirs.weight_ih_l0.T
    outputs, last = kron_gru(x, factors, bias, h0, weight=weight, backend=backend)
    check_equal(theirs, (outputs, last), (expected, h_n[0]))


def check_equal(layer, ours, theirs):
    """Compare results, and the gradients of torch's weights by both."""
    assert worst_error(ours, theirs) < 1e-14
    weights = list(layer.parameters())
    gradients = [torch.autograd.grad(sum(r.sum() for r in s), weights) for s in (ours, theirs)]
    assert worst_error(*gradients) < 1e-13


RNN = {
    "x": torch.zeros(T, B, N),
    "factors": [torch.eye(2), torch.eye(2)],
    "bias": torch.zeros(N),
    "h0": torch.zeros(B, N),
}
LSTM = {
    "x": torch.zeros(T, B, 4 * N),
    "factors": [[torch.eye(2), torch.eye(2)]] * 4,
    "bias": torch.zeros(4 * N),
    "state": (torch.zeros(B, N), torch.zeros(B, N)),
}
EYES = [[torch.eye(4)]] * 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"factors": []}, "factors must be matrices, of at least one row and column"),
        ({"factors": [torch.ones(0, 0)]}, "factors must be matrices, of at least one row"),
        ({"factors": [torch.ones(2, 4)]}, "factors make a 2x4 matrix"),
        ({"factors": [torch.eye(2), torch.eye(2) + 0j]}, "all real or all complex"),
        ({"factors": [torch.eye(4, device="meta")]}, "a factor is on another device"),
        ({"factors": [torch.eye(4).double()]}, r"a factor has the type torch\.float64"),
        ({"x": torch.zeros(0, B, N)}, "x needs at least one step"),
        ({"x": torch.zeros(T, B, 5)}, r"x has shape .*, expected \(T, B, 4\) when no weight"),
        ({"x": torch.zeros(T, B, 5), "weight": torch.zeros(6, N)}, "must be features"),
        ({"x": torch.zeros(T, B) + 0j, "weight": torch.zeros(6, N)}, "must be features"),
        ({"x": torch.zeros(T, B, N).double()}, "x has another type than h0"),
        ({"x": torch.zeros(T, B, N).long()}, "x has another type than h0"),
        ({"weight": torch.zeros(N, 7)}, r"weight has shape \(4, 7\), expected \(I, 4\)"),
        ({"weight": torch.zeros(0, N)}, r"weight has shape \(0, 4\), .*, I at least 1"),
        ({"bias": torch.zeros(3)}, r"bias has shape \(3,\), expected \(4,\)"),
        ({"bias": torch.zeros(N).long()}, "bias has another type than h0"),
        ({"bias": torch.zeros(N, device="meta")}, "bias is on another device than h0, meta"),
        ({"h0": torch.zeros(B, 3)}, "h0 has shape"),
        ({"h0": torch.zeros(B, N).long()}, "h0 must hold real numbers"),
        ({"h0": torch.zeros(B, N, device="meta")}, "x is on another device than h0, cpu and not"),
        ({"lengths": torch.ones(2)}, "lengths has shape"),
        ({"lengths": torch.tensor([1, 3, 1])}, "lengths must be between 1 and the 2 steps"),
        ({"lengths": torch.tensor([1, 0, 1])}, "lengths must be between 1 and the 2 steps"),
        ({"checkpoint_every": 0}, "checkpoint_every=0 must be at least 1"),
        ({"checkpoint_every": -1}, "checkpoint_every=-1 must be at least 1"),
        ({"activation": "relu"}, "activation='relu': choose from"),
        ({"factors": [torch.eye(4) + 0j], "activation": "tanh"}, "'tanh' needs real factors"),
        ({"backend": "abacus"}, "backend='abacus': choose one of auto, cuda, cpu, reference"),
    ],
)
def test_what_does_not_fit_is_named(changes, message):
    with pytest.raises(ValueError, match=f"kron_rnn: .*{message}|{message}"):
        kron_rnn(**RNN | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"factors": EYES}, "factors has 3 gates, expected 4"),
        ({"factors": [[torch.eye(4)], [], *EYES[1:]]}, "factors of gate f must be matrices"),
        ({"factors": [*EYES, [torch.eye(4) + 0j]]}, "factors of gate o must be real matrices"),
        ({"factors": [*EYES, [torch.ones(2, 4)]]}, "gate o make a 2x4 matrix; .* 4x4"),
        ({"factors": [*EYES, [torch.eye(3)]]}, "gate o make a 3x3 matrix; .* 4x4"),
        ({"state": (torch.zeros(B, N),)}, "state must be 2 tensors: h, c"),
        ({"state": (torch.zeros(B, N), torch.zeros(2, N))}, "c0 has shape"),
        ({"state": (torch.zeros(B, N), torch.zeros(B, N).double())}, "c0 has another type than h0"),
    ],
)
def test_what_does_not_fit_several_products_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        kron_lstm(**LSTM | changes)


@pytest.mark.parametrize("backend", available_backends())
@pytest.mark.parametrize("bad", [-1, 6])
def test_a_token_without_a_row_is_refused(backend, bad):
    tokens = torch.zeros(T, B, dtype=torch.int64)
    tokens[1, 1] = bad
    with pytest.raises(IndexError):
        kron_rnn(**RNN | {"x": tokens}, weight=torch.zeros(6, N), backend=backend)
