"""The definition itself, held against loops written out by hand."""

import pytest
import torch

from kron_plugin.ops import available_backends, dense, join, kron_rnn, modrelu, split

T, B, N = 5, 3, 4


def reference(*args, **kwargs):
    return kron_rnn(*args, backend="reference", **kwargs)


def test_one_real_factor_is_the_ordinary_rnn():
    w, x = torch.randn(N, N, dtype=torch.float64), torch.randn(T, B, N, dtype=torch.float64)
    bias, h = torch.randn(N, dtype=torch.float64), torch.randn(B, N, dtype=torch.float64)
    states, last = reference(x, [w], bias, h, activation="tanh")
    for t in range(T):
        h = torch.tanh(h @ w.T + x[t] + bias)
        torch.testing.assert_close(states[t], h)
    torch.testing.assert_close(last, h)


def test_complex_factors_against_the_dense_matrix():
    factors = [torch.randn(2, 2, dtype=torch.complex128) / 2 for _ in range(2)]
    x = torch.randn(T, B, N, dtype=torch.complex128)
    bias, h = torch.randn(N, dtype=torch.float64), torch.randn(B, N, dtype=torch.complex128)
    states, _ = reference(split(x), factors, bias, split(h))
    for t in range(T):
        h = modrelu(h @ dense(factors).T + x[t], bias)
        torch.testing.assert_close(join(states[t]), h)


def test_finished_sequences_keep_their_last_state_and_ask_nothing_of_later_inputs():
    factors = [torch.randn(2, 2, dtype=torch.float64) for _ in range(2)]
    x = torch.randn(T, B, N, dtype=torch.float64, requires_grad=True)
    bias, h0 = torch.zeros(N, dtype=torch.float64), torch.randn(B, N, dtype=torch.float64)
    lengths = torch.tensor([2, 5, 1])
    states, last = reference(x, factors, bias, h0, lengths)
    for b, length in enumerate(lengths.tolist()):
        alone, _ = reference(x[:length, b : b + 1], factors, bias, h0[b : b + 1])
        torch.testing.assert_close(states[:length, b : b + 1], alone)
        assert torch.equal(states[length - 1 :, b], last[b].expand(T - length + 1, N))
    states.square().sum().backward()
    assert x.grad[2:, 0].eq(0).all()
    assert x.grad[1:, 2].eq(0).all()
    assert x.grad[4, 1].ne(0).any()


@pytest.mark.parametrize("tokens", [False, True])
def test_features_and_tokens_stand_for_their_projection(tokens):
    factors = [torch.randn(2, 2, dtype=torch.complex128) for _ in range(2)]
    weight = torch.randn(6, 2 * N, dtype=torch.float64)
    x = torch.randint(6, (T, B)) if tokens else torch.randn(T, B, 6, dtype=torch.float64)
    bias, h0 = torch.randn(N, dtype=torch.float64), torch.randn(B, 2 * N, dtype=torch.float64)
    projected = weight[x] if tokens else x @ weight
    expected, _ = reference(projected, factors, bias, h0)
    states, _ = reference(x, factors, bias, h0, weight=weight)
    torch.testing.assert_close(states, expected)


def arguments(**changes):
    args = {
        "x": torch.zeros(T, B, N),
        "factors": [torch.eye(2), torch.eye(2)],
        "bias": torch.zeros(N),
        "h0": torch.zeros(B, N),
    }
    return {**args, **changes}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"factors": []}, "factors must be"),
        ({"factors": [torch.ones(2, 4)]}, "factors make a 2x4 matrix"),
        ({"factors": [torch.eye(2), torch.eye(2, dtype=torch.complex64)]}, "all real or all"),
        ({"x": torch.zeros(0, B, N)}, "x needs at least one step"),
        ({"x": torch.zeros(T, B, 5)}, "x has shape"),
        ({"x": torch.zeros(T, B, 5), "weight": torch.zeros(6, N)}, "must be features"),
        ({"weight": torch.zeros(N, 7)}, "weight has shape"),
        ({"bias": torch.zeros(3)}, "bias has shape"),
        ({"h0": torch.zeros(B, 3)}, "h0 has shape"),
        ({"lengths": torch.ones(2)}, "lengths has shape"),
        ({"lengths": torch.tensor([1, 6, 1])}, "lengths must be between 1 and the 5"),
        ({"lengths": torch.tensor([1, 0, 1])}, "lengths must be between 1 and the 5"),
        ({"x": torch.zeros(T, B, N, dtype=torch.float64)}, "x has another type than h0"),
        ({"x": torch.zeros(T, B, N, dtype=torch.int64)}, "x has another type than h0"),
        ({"bias": torch.zeros(N, dtype=torch.int64)}, "bias has another type than h0"),
        ({"h0": torch.zeros(B, N, dtype=torch.int64)}, "h0 must hold real numbers"),
        ({"h0": torch.zeros(B, N, device="meta")}, "x is on another device than h0, cpu and not"),
        ({"factors": [torch.eye(4, device="meta")]}, "a factor is on another device"),
        ({"factors": [torch.ones(0, 0)]}, "factors must be matrices, of at least one row"),
        (
            {"x": torch.zeros(T, B, dtype=torch.int64), "weight": torch.zeros(0, N)},
            r"weight has shape \(0, 4\), expected \(I, 4\), I at least 1",
        ),
        ({"x": torch.zeros(T, B) + 0j, "weight": torch.zeros(6, N)}, "must be features"),
        ({"activation": "relu"}, "activation='relu'"),
        ({"backend": "fast"}, "backend='fast'"),
    ],
)
def test_what_does_not_fit_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        kron_rnn(**arguments(**changes))


@pytest.mark.parametrize("backend", available_backends())
@pytest.mark.parametrize("bad", [-1, 6])
def test_a_token_without_a_row_is_refused(backend, bad):
    tokens = torch.zeros(T, B, dtype=torch.int64)
    tokens[2, 1] = bad
    with pytest.raises(IndexError):
        kron_rnn(**arguments(x=tokens), weight=torch.zeros(6, N), backend=backend)


def test_tanh_wants_real_factors():
    with pytest.raises(ValueError, match="real factors"):
        kron_rnn(
            torch.zeros(T, B, 4),
            [torch.eye(2, dtype=torch.complex64)],
            torch.zeros(4),
            torch.zeros(B, 4),
            activation="tanh",
        )
