import pytest
import torch

from kron_plugin.modules import KRUGRU


def test_three_square_factors_make_torch_gru():
    kru_gru, gru = KRUGRU(3, 8, factors="8").double(), torch.nn.GRU(3, 8).double()
    (layer,) = kru_gru.layers
    with torch.no_grad():
        gru.weight_ih_l0.copy_(layer.weight.T)
        gru.weight_hh_l0.copy_(torch.cat(layer.matrices()))
        inside, behind = layer.bias.uniform_(-1, 1).split([24, 8])
        gru.bias_ih_l0.copy_(inside)
        gru.bias_hh_l0.copy_(torch.cat([torch.zeros(16).double(), behind]))
    x, h0 = torch.randn(6, 2, 3).double(), torch.randn(1, 2, 8).double()
    torch.testing.assert_close(kru_gru(x, h0), gru(x, h0), rtol=1e-12, atol=1e-12)


def test_starts_orthogonal_and_keeping_its_state():
    kru_gru = KRUGRU(3, 8)
    (layer,) = kru_gru.layers
    assert kru_gru.unitary_deviation() < 1e-5
    torch.testing.assert_close(layer.singular_values(), torch.ones(3, 8))
    assert layer.bias.tolist() == [0] * 8 + [1] * 8 + [0] * 16


def test_chrono_spreads_memories_over_the_steps():
    (layer,) = KRUGRU(3, 1024, chrono=100).layers
    steps = 1 + layer.bias.chunk(4)[1].exp()
    assert steps.max() <= 100
    assert steps.mean().item() == pytest.approx(51, abs=3)
