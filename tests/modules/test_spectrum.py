from math import e, inf, pi

import pytest
import torch

from kron_plugin.modules import spectrum as module
from kron_plugin.modules.spectrum import memory_steps, spectrum, turn_steps
from kron_plugin.ops import dense


def by_place(values):
    """Complex numbers in an order that rounding does not change."""
    return sorted(values.tolist(), key=lambda z: (round(z.real, 6), round(z.imag, 6)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
@pytest.mark.parametrize("sizes", [[7], [2, 2, 2], [3, 1, 4]])
def test_a_spectrum_is_that_of_the_whole_matrix(sizes, dtype):
    factors = [torch.randn(p, p, dtype=dtype) for p in sizes]
    whole = dense([w.to(torch.complex128) for w in factors])
    found = spectrum(factors)
    assert found.eigenvalues.dtype == torch.complex128
    assert by_place(found.eigenvalues) == pytest.approx(by_place(torch.linalg.eigvals(whole)))
    singular = found.singular_values.sort(descending=True).values
    torch.testing.assert_close(singular, torch.linalg.svdvals(whole))


def test_of_a_large_spectrum_some_are_drawn(monkeypatch):
    factors = [torch.randn(4, 4) for _ in range(3)]
    whole = spectrum(factors)
    monkeypatch.setattr(module, "MOST", 40)
    some = spectrum(factors)
    for drawn, known in zip(some, whole, strict=True):
        assert len(drawn) == 40
        assert (drawn.unsqueeze(1) - known).abs().min(1).values.max() < 1e-12
        assert len(set(drawn.tolist())) > 20
    assert torch.equal(spectrum(factors).eigenvalues, some.eigenvalues)  # the same every time


def test_rectangular_factors_are_named():
    with pytest.raises(ValueError, match="factors='2x4,4x2': rectangular ones have no eigenvalues"):
        spectrum([torch.randn(2, 4), torch.randn(4, 2)])


def test_time_scales_are_those_of_a_linear_recurrence():
    values = torch.polar(
        torch.tensor([1 / e, 0.99, 1.0, 1.5, 0.0]), torch.tensor([pi / 2, -0.1, 0.0, pi, 0.0])
    ).to(torch.complex128)
    torch.testing.assert_close(
        memory_steps(values)[[0, 2, 3, 4]], torch.tensor([1, inf, inf, 0]).double()
    )
    steps = memory_steps(values)[1]
    assert 0.99 ** float(steps) == pytest.approx(1 / e, rel=1e-5)
    expected = torch.tensor([4, 20 * pi, inf, 2, inf]).double()
    torch.testing.assert_close(turn_steps(values), expected)
