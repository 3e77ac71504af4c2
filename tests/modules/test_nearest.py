import pytest
import torch

from kron_plugin.modules import nearest, nearest_kronecker
from kron_plugin.ops import dense

SPECS = ["16", "4,4", "2,8", "2x4,8x4", "2,2,2,2", "2x4,4x2,2", "3,5"]


def size_of(spec):
    return 15 if spec == "3,5" else 16


def error(matrix, spec):
    return torch.linalg.norm(matrix - dense(nearest_kronecker(matrix, spec)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex128])
@pytest.mark.parametrize("spec", SPECS)
def test_a_kronecker_product_is_found_again(spec, dtype):
    sizes = [tuple(map(int, part.split("x"))) for part in spec.split(",")]
    product = dense([torch.randn(s if len(s) == 2 else s * 2, dtype=dtype) for s in sizes])
    factors = nearest_kronecker(product, spec)
    assert [tuple(w.shape) for w in factors] == [s if len(s) == 2 else s * 2 for s in sizes]
    assert {w.dtype for w in factors} == {dtype}
    torch.testing.assert_close(dense(factors), product)
    norms = torch.stack([torch.linalg.norm(w) for w in factors])
    torch.testing.assert_close(norms, norms[:1].expand(len(factors)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("sizes", [((4, 4), (4, 4)), ((2, 4), (8, 4)), ((2, 2), (8, 8))])
def test_two_factors_reach_the_bound(sizes, dtype):
    """The error of the best rank-one approximation of the rearranged matrix, built entrywise."""
    matrix = torch.randn(16, 16, dtype=dtype)
    (p0, q0), (p1, q1) = sizes
    blocks = [
        matrix[p1 * i : p1 * (i + 1), q1 * j : q1 * (j + 1)].reshape(-1)
        for i in range(p0)
        for j in range(q0)
    ]
    left = torch.linalg.svdvals(torch.stack(blocks))[1:].square().sum().sqrt()
    torch.testing.assert_close(error(matrix, sizes), left)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("spec", ["2,2,2,2", "2x4,4x2,2", "4,2,2"])
def test_sweeps_improve_on_splitting_off(spec, dtype, monkeypatch):
    matrices = [torch.randn(16, 16, dtype=dtype) for _ in range(5)]
    swept = [error(m, spec) for m in matrices]
    monkeypatch.setattr(nearest, "MAX_SWEEPS", 0)
    split = [error(m, spec) for m in matrices]
    assert all(a <= b * (1 + 1e-12) for a, b in zip(swept, split, strict=True))
    assert sum(swept) < 0.999 * sum(split)


def test_sweeps_end_where_no_factor_alone_can_gain():
    matrix = torch.randn(8, 8, dtype=torch.float64)
    factors = [w.requires_grad_() for w in nearest_kronecker(matrix, "2,2,2")]
    loss = (matrix - dense(factors)).square().sum()
    for gradient in torch.autograd.grad(loss, factors):
        assert gradient.abs().max() < 1e-4 * loss


def test_a_matrix_of_zeros_has_factors_of_zeros():
    assert all(w.eq(0).all() for w in nearest_kronecker(torch.zeros(8, 8), "2,2,2"))


@pytest.mark.parametrize(
    ("matrix", "spec", "message"),
    [
        (torch.zeros(8, 4), "2,4", r"matrix has shape \(8, 4\): must be a square matrix"),
        (torch.zeros(8), "2,4", "must be a square matrix"),
        (torch.zeros(8, 8), "2,3", "multiply to 6, but hidden_size is 8"),
    ],
)
def test_sizes_that_do_not_fit_are_named(matrix, spec, message):
    with pytest.raises(ValueError, match=message):
        nearest_kronecker(matrix, spec)
