import pytest
import torch

from kron_plugin.modules import singular_values, unitary_, unitary_deviation, unitary_penalty
from kron_plugin.ops import dense

SHAPES = [[(2, 2)] * 4, [(3, 3), (5, 5)], [(2, 4), (4, 2)], [(2, 3), (3, 2), (2, 2)]]


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


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("shapes", SHAPES)
def test_singular_values_are_those_of_the_whole(shapes, dtype):
    factors = make_factors(shapes, dtype)
    torch.testing.assert_close(singular_values(factors), torch.linalg.svdvals(dense(factors)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize(("p", "q"), [(1, 1), (2, 2), (7, 7), (4, 2), (2, 4)])
def test_initial_factors_are_unitary_as_far_as_they_can_be(p, q, dtype):
    w = unitary_(torch.empty(p, q, dtype=dtype))
    gram = w.mH @ w if p >= q else w @ w.mH
    torch.testing.assert_close(gram, torch.eye(min(p, q), dtype=dtype))


def test_penalty_has_a_finite_gradient_where_it_is_zero():
    w = torch.eye(2, dtype=torch.complex64, requires_grad=True)
    (unitary_penalty([w]) + unitary_deviation([w])).backward()
    assert w.grad.isfinite().all()
