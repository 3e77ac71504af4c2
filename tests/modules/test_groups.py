import pytest
import torch
from torch import nn

from kron_plugin import KRU, KRULSTM, parameter_groups


class Model(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer, self.readout = layer, nn.Linear(layer.output_size, 2)


def test_factors_and_biases_have_rates_of_their_own():
    model = Model(KRU(3, 8))
    groups = parameter_groups(model, 0.5, factor_scale=0.1, bias_scale=0.2, weight_decay=0.3)
    others, factors, biases = groups
    assert [g["lr"] for g in groups] == pytest.approx([0.5, 0.05, 0.1])
    assert [g["weight_decay"] for g in groups] == [0.3] * 3
    assert list(map(id, factors["params"])) == list(map(id, model.layer.factors))
    assert [p is model.layer.layers[0].bias for p in biases["params"]] == [True]
    counted = [p for group in groups for p in group["params"]]
    assert {id(p) for p in counted} == {id(p) for p in model.parameters()}
    assert len(others["params"]) == len(counted) - len(model.layer.factors) - 1


@pytest.mark.parametrize("optimiser", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
def test_any_optimiser_takes_them(optimiser):
    model = Model(KRULSTM(3, 8))
    groups = parameter_groups(model.parameters(), lr=1e-2)
    assert len(groups) == 2  # a bias of gates is like any other parameter
    optimiser(groups)


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match=r"factor_scale=-1: must be 0 or more"):
        parameter_groups(KRU(1, 2), 1e-3, factor_scale=-1)
    with pytest.raises(ValueError, match=r"lr=nan: must be 0 or more"):
        parameter_groups(KRU(1, 2), float("nan"))
    with pytest.raises(TypeError, match=r"parameters: .* not of type tuple"):
        parameter_groups(KRU(1, 2).named_parameters(), 1e-3)
    with pytest.raises(ValueError, match=r"parameters: there are none"):
        parameter_groups([], 1e-3)
