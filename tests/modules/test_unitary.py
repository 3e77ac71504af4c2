from math import pi

import pytest
import torch

from kron_plugin.modules import (
    CELLS,
    KRU,
    singular_values,
    unitary_,
    unitary_deviation,
    unitary_penalty,
)
from kron_plugin.modules.unitary import singular_range
from kron_plugin.ops import dense

SHAPES = [
    [(2, 2)] * 4,
    [(2, 2), (3, 3), (2, 2)],
    [(3, 3), (5, 5)],
    [(2, 4), (4, 2)],
    [(2, 3), (3, 2), (2, 2)],
]


def make_factors(shapes, dtype):
    return [torch.randn(*s, dtype=dtype, requires_grad=True) for s in shapes]


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("shapes", SHAPES)
def test_penalty_and_deviation_follow_their_formula(shapes, dtype):
    factors = make_factors(shapes, dtype)
    errors = [torch.linalg.norm(w.mH @ w - torch.eye(w.shape[1])) for w in factors]
    torch.testing.assert_close(unitary_penalty(factors), sum(e**2 for e in errors))
    torch.testing.assert_close(unitary_deviation(factors), max(errors))
    torch.autograd.gradcheck(lambda *fs: unitary_penalty(fs), factors)
    torch.autograd.gradgradcheck(lambda *fs: unitary_penalty(fs), factors)


@pytest.mark.parametrize("complex", [True, False])
def test_matrices_are_the_factors_in_their_order(complex):
    layer = KRU(3, 24, factors="2,3,2,2x1,1x2", complex=complex, activation="identity").layers[0]
    expected = [torch.view_as_complex(f) if complex else f for f in layer.factors]
    matrices = layer.matrices()
    assert all(map(torch.equal, matrices, expected))
    upstream = [torch.randn_like(w) for w in matrices]
    torch.autograd.backward(matrices, upstream)
    for factor, d in zip(layer.factors, upstream, strict=True):
        assert torch.equal(factor.grad, torch.view_as_real(d) if complex else d)


@pytest.mark.parametrize("unitary", ["soft", "none", "hard"])
def test_penalty_and_deviation_are_the_same_together(unitary):
    layer = KRU(3, 12, factors="2,3,2", unitary=unitary).layers[0]
    with torch.no_grad():
        layer.factors[1].add_(0.5)
    penalty, deviation = layer.penalty_and_deviation()
    assert torch.equal(penalty, layer.unitary_penalty())
    assert torch.equal(deviation, layer.unitary_deviation())
    assert penalty.requires_grad == (unitary == "soft")
    assert not deviation.requires_grad


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("shapes", SHAPES)
def test_singular_values_are_those_of_the_whole(shapes, dtype):
    factors = make_factors(shapes, dtype)
    expected = torch.linalg.svdvals(dense(factors))
    torch.testing.assert_close(singular_values(factors), expected)
    torch.testing.assert_close(singular_range(factors), expected[[-1, 0]])


@pytest.mark.parametrize("cell", CELLS)
def test_the_range_of_a_layer_is_that_of_all_its_products(cell):
    layer = CELLS[cell](3, 12, factors="4,3").layers[0]
    with torch.no_grad():
        layer.factors[0].mul_(3)
        layer.factors[-1].div_(2)
    whole = torch.cat([torch.linalg.svdvals(dense(product)) for product in layer.products()])
    torch.testing.assert_close(layer.singular_range(), torch.stack([whole.min(), whole.max()]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize(("p", "q"), [(1, 1), (2, 2), (7, 7), (4, 2), (2, 4)])
def test_initial_factors_are_unitary_as_far_as_they_can_be(p, q, dtype):
    w = unitary_(torch.empty(p, q, dtype=dtype))
    gram = w.mH @ w if p >= q else w @ w.mH
    torch.testing.assert_close(gram, torch.eye(min(p, q), dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("p", [1, 2, 7, 64])
def test_initial_factors_turn_by_no_more_than_their_angle(p, dtype):
    w = unitary_(torch.empty(p, p, dtype=dtype), angle=0.2)
    torch.testing.assert_close(w.mH @ w, torch.eye(p, dtype=dtype))
    angles = torch.linalg.eigvals(w).angle().abs()
    assert angles.max() <= 0.2 + 1e-9
    if p == 64:
        assert angles.max() > 0.15
        assert 0.05 < angles.median() < 0.15
        assert w.abs().fill_diagonal_(0).max() > 1e-3  # eigenvectors are not unit vectors
    torch.testing.assert_close(unitary_(w, angle=0), torch.eye(p, dtype=dtype))


@pytest.mark.parametrize("angle", [-0.1, pi + 0.1, float("nan")])
def test_an_angle_that_is_none_is_named(angle):
    with pytest.raises(ValueError, match=f"angle={angle}: must be from 0 to π"):
        unitary_(torch.empty(2, 2), angle)


def test_an_angle_for_a_rectangular_factor_is_named():
    with pytest.raises(ValueError, match=r"angle=0\.2: a factor of 2x4 has no eigenvalues"):
        KRU(3, 8, factors="2x4,4x2", angle=0.2)


@pytest.mark.parametrize("unitary", ["soft", "hard"])
def test_a_layer_starts_within_its_angle(unitary):
    layer = KRU(3, 64, unitary=unitary, angle=0.1).layers[0]
    angles = [torch.linalg.eigvals(w).angle().abs().max() for w in layer.matrices()]
    assert 0.05 < max(angles) < 0.1 + 1e-6


def test_penalty_has_a_finite_gradient_where_it_is_zero():
    w = torch.eye(2, dtype=torch.complex64, requires_grad=True)
    (unitary_penalty([w]) + unitary_deviation([w])).backward()
    assert w.grad.isfinite().all()
