import pytest
import torch

from kron_plugin.ops import dense, join, kron_matmul, modrelu, split

SHAPES = [
    [(2, 2)] * 7,
    [(3, 3), (137, 137)],
    [(16, 16), (32, 32)],
    [(5, 5)],
    [(2, 4), (4, 2)],
    [(3, 1), (2, 5), (4, 3)],
]


def make_factors(shapes, dtype, requires_grad=False):
    return [torch.randn(*s, dtype=dtype, requires_grad=requires_grad) for s in shapes]


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("shapes", SHAPES)
def test_kron_matmul_equals_the_dense_product(shapes, dtype):
    factors = make_factors(shapes, dtype, requires_grad=True)
    w = dense(factors)
    x = torch.randn(2, 3, w.shape[1], dtype=dtype, requires_grad=True)
    y, expected = kron_matmul(x, factors), x @ w.T
    torch.testing.assert_close(y, expected)

    upstream = torch.randn_like(y)
    grads = torch.autograd.grad(y, [x, *factors], upstream)
    torch.testing.assert_close(grads, torch.autograd.grad(expected, [x, *factors], upstream))


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("shapes", [[(2, 2)] * 3, [(2, 3), (3, 2)], [(5, 5)]])
def test_kron_matmul_gradients(shapes, dtype):
    factors = make_factors(shapes, dtype, requires_grad=True)
    x = torch.randn(2, dense(factors).shape[1], dtype=dtype, requires_grad=True)
    torch.autograd.gradcheck(lambda x, *fs: kron_matmul(x, fs), (x, *factors))
    torch.autograd.gradgradcheck(lambda x, *fs: kron_matmul(x, fs), (x, *factors))


def test_kron_matmul_takes_real_vectors_with_complex_factors():
    factors = make_factors([(2, 2), (3, 3)], torch.complex128)
    x = torch.randn(4, 6, dtype=torch.float64)
    torch.testing.assert_close(kron_matmul(x, factors), x.to(torch.complex128) @ dense(factors).T)


def test_kron_matmul_of_no_vectors():
    factors = make_factors([(2, 3), (3, 2)], torch.float64)
    assert kron_matmul(torch.ones(2, 0, 6, dtype=torch.float64), factors).shape == (2, 0, 6)


@pytest.mark.parametrize("factors", [[], [torch.ones(2)], [torch.ones(2, 2), torch.ones(3, 3)]])
def test_kron_matmul_says_what_does_not_fit(factors):
    with pytest.raises(ValueError, match="kron_matmul: factors"):
        kron_matmul(torch.ones(5), factors)


def test_modrelu_keeps_the_phase_and_moves_the_modulus():
    z = torch.polar(
        torch.tensor([2.0, 0.5, 1.0], dtype=torch.float64),
        torch.tensor([0.3, -1.0, 3.0], dtype=torch.float64),
    )
    bias = torch.tensor([-0.5, -0.7, 0.25], dtype=torch.float64)
    out = modrelu(z, bias)
    torch.testing.assert_close(out.abs(), torch.tensor([1.5, 0.0, 1.25], dtype=torch.float64))
    torch.testing.assert_close(out[::2].angle(), z[::2].angle())


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_modrelu_gradients_are_right_and_finite_where_it_has_none(dtype):
    z = torch.randn(8, dtype=dtype, requires_grad=True)
    bias = torch.randn(8, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(modrelu, (z, bias))
    torch.autograd.gradgradcheck(modrelu, (z, bias))

    z = torch.zeros(2, dtype=dtype, requires_grad=True)
    bias = torch.tensor([0.1, -0.1], dtype=torch.float64, requires_grad=True)
    modrelu(z, bias).abs().sum().backward()
    assert z.grad.abs().eq(0).all()
    assert bias.grad.isfinite().all()

    z = torch.tensor([3, 3 + 4j] if dtype.is_complex else [3, -5], dtype=dtype, requires_grad=True)
    bias = torch.tensor([-3.0, -5.0], dtype=torch.float64, requires_grad=True)  # at the edge
    modrelu(z, bias).abs().sum().backward()
    assert z.grad.isfinite().all()
    assert bias.grad.isfinite().all()


def test_split_and_join_are_inverse():
    z = torch.randn(3, 4, dtype=torch.complex64)
    assert torch.equal(join(split(z)), z)
    assert torch.equal(split(z)[..., :4], z.real)


def test_the_widest_type_among_vectors_and_factors_is_computed_in():
    x, real = torch.ones(4, dtype=torch.float64), torch.eye(2)
    for factors in ([real, 1j * real], [1j * real, real]):
        y = kron_matmul(x, factors)
        assert y.dtype == torch.complex128
        assert torch.equal(y, 1j * x)
