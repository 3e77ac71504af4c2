import pytest
import torch

from kron_plugin.modules import KRULSTM
from kron_plugin.ops import dense

from .test_kru import copy_to_torch


def test_four_square_factors_make_torch_lstm():
    kru_lstm, lstm = KRULSTM(3, 8, factors="8").double(), torch.nn.LSTM(3, 8).double()
    copy_to_torch(kru_lstm.layers[0], lstm)
    x = torch.randn(6, 2, 3).double()
    torch.testing.assert_close(kru_lstm(x), lstm(x), rtol=1e-12, atol=1e-12)


def test_each_gate_has_the_product_of_its_own_factors():
    kru_lstm, lstm = KRULSTM(3, 8, factors="2x4,4x2"), torch.nn.LSTM(3, 8)
    (layer,) = kru_lstm.layers
    whole = KRULSTM(3, 8, factors="8")
    whole.layers[0].load_state_dict(
        {
            "weight": layer.weight,
            "bias": layer.bias,
            **{f"factors.{k}": dense(layer.matrices()[2 * k : 2 * k + 2]) for k in range(4)},
        }
    )
    copy_to_torch(whole.layers[0], lstm)
    x, state = torch.randn(6, 2, 3), (torch.randn(1, 2, 8), torch.randn(1, 2, 8))
    torch.testing.assert_close(kru_lstm(x, state), lstm(x, state))


def test_starts_orthogonal_remembering_and_without_penalty():
    kru_lstm = KRULSTM(3, 8)
    (layer,) = kru_lstm.layers
    assert kru_lstm.unitary_deviation() < 1e-5
    torch.testing.assert_close(layer.singular_values(), torch.ones(4, 8))
    assert layer.bias.tolist() == [0] * 8 + [1] * 8 + [0] * 16
    with torch.no_grad():
        layer.factors[0].mul_(2)
    assert kru_lstm.unitary_penalty() == 0
    assert {p.param_group for p in kru_lstm.factors} == {"factors"}


def test_chrono_spreads_memories_over_the_steps():
    (layer,) = KRULSTM(3, 1024, chrono=100).layers
    of_input, of_forget, of_cell, of_output = layer.bias.chunk(4)
    steps = 1 + of_forget.exp()
    assert 2 <= steps.min() < 4
    assert 98 < steps.max() <= 100
    assert steps.mean().item() == pytest.approx(51, abs=3)
    assert torch.equal(of_input, -of_forget)
    assert not of_cell.any()
    assert not of_output.any()


def test_chrono_of_less_than_two_steps_is_named():
    with pytest.raises(ValueError, match="chrono=1: must be at least 2 steps"):
        KRULSTM(3, 8, chrono=1)


def test_an_infinite_cell_is_reported_though_no_output_shows_it():
    layer = KRULSTM(3, 4, check_finite=True)
    state = (torch.zeros(1, 2, 4), torch.full((1, 2, 4), torch.inf))
    with pytest.raises(RuntimeError, match="KRULSTM: the state holds a NaN or an infinity at the"):
        layer(torch.zeros(5, 2, 3), state)
