import pytest
import torch

from kron_plugin.modules import CELLS, KRU
from kron_plugin.modules.unitary_map import UnitaryMap


@pytest.mark.parametrize("complex", [True, False])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (2, 2), (5, 5), (4, 2), (2, 4)])
def test_any_matrix_becomes_unitary(rows, columns, complex):
    unitary_map = UnitaryMap(rows, columns, complex).double()
    x = torch.randn(rows, columns, dtype=torch.complex128 if complex else torch.float64)
    w = unitary_map(x)
    gram = w.mH @ w if rows >= columns else w @ w.mH
    torch.testing.assert_close(gram, torch.eye(min(rows, columns), dtype=x.dtype))
    start = unitary_map(torch.zeros_like(x))
    assert rows == 1 or not torch.allclose(start, w)
    x.requires_grad_()
    torch.autograd.gradcheck(unitary_map, x)


@pytest.mark.parametrize("cell", CELLS.values())
def test_hard_factors_stay_unitary_whatever_the_optimiser_does(cell):
    torch.manual_seed(0)
    layer = cell(2, 8, factors="4,2", unitary="hard")
    assert {p.param_group for p in layer.factors} == {"factors"}
    assert not any(p.is_complex() for p in layer.parameters())
    before = [w.detach().clone() for w in layer.layers[0].matrices()]
    optimiser = torch.optim.SGD(layer.parameters(), lr=0.5)
    for _ in range(3):
        layer(torch.randn(5, 3, 2))[0].square().mean().backward()
        optimiser.step()
    for w, old in zip(layer.layers[0].matrices(), before, strict=True):
        assert not torch.allclose(w, old)
    assert layer.unitary_deviation() < 1e-5
    assert layer.unitary_penalty() == 0


def test_hard_factors_are_restored_from_their_state():
    kru, other = KRU(2, 8, unitary="hard"), KRU(2, 8, unitary="hard")
    other.load_state_dict(kru.state_dict())
    x = torch.randn(5, 3, 2)
    assert torch.equal(kru(x)[0], other(x)[0])


def test_hard_factors_are_unitary_in_half_precision():
    kru = KRU(1, 512, unitary="hard").bfloat16()
    with torch.no_grad():
        for factor in kru.factors:
            factor.normal_()
    assert kru.unitary_deviation() < 1e-5


def test_hard_factors_are_unitary_to_the_precision_that_is_asked_for():
    for kru in (KRU(1, 512, unitary="hard", dtype=torch.float64), KRU(1, 8, unitary="hard")):
        assert kru.bfloat16().double().unitary_deviation() < 1e-13


def test_the_base_comes_back_to_double_precision():
    kru = KRU(1, 8, unitary="hard")
    single = {name: tensor.float() for name, tensor in kru.state_dict().items()}
    kru.load_state_dict(single, assign=True)
    assert {map_.base.dtype for map_ in kru.double().layers[0].maps} == {torch.float64}


def test_no_penalty_is_counted_when_none_is_wanted():
    kru = KRU(2, 8, unitary="none")
    with torch.no_grad():
        kru.factors[0].mul_(2)
    assert kru.unitary_penalty() == 0
    assert kru.unitary_deviation() > 1
