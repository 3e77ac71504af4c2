import pytest
import torch

from kron_plugin.modules import KRU, Readout
from kron_plugin.ops.activation import join


@pytest.mark.parametrize("reads", ["parts", "moduli", "both"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_reads_what_the_complex_numbers_say(reads, bidirectional):
    kru = KRU(3, 4, bidirectional=bidirectional, dtype=torch.float64)
    readout = Readout(kru.output_size, 2, reads=reads, directions=kru.directions).double()
    h, _ = kru(torch.randn(5, 2, 3, dtype=torch.float64))
    numbers = [join(direction) for direction in h.chunk(kru.directions, dim=-1)]
    moduli = torch.cat([z.abs() for z in numbers], dim=-1)
    features = {"parts": h, "moduli": moduli, "both": torch.cat([h, moduli], -1)}[reads]
    torch.testing.assert_close(readout(h), features @ readout.weight.t() + readout.bias)


@pytest.mark.parametrize("reads", ["moduli", "both"])
def test_gradients_are_those_of_the_definition_and_finite_at_zero(reads):
    readout = Readout(6, 2, reads=reads).double()
    h = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(readout, h)
    zero = torch.zeros(3, 6, dtype=torch.float64, requires_grad=True)
    readout(zero).sum().backward()
    assert zero.grad.isfinite().all()


def test_parts_are_read_as_by_a_linear_layer():
    torch.manual_seed(0)
    readout = Readout(5, 2)
    torch.manual_seed(0)
    linear = torch.nn.Linear(5, 2)
    assert torch.equal(readout(torch.ones(5)), linear(torch.ones(5)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"reads": "phases"}, "reads='phases': choose from"),
        ({"input_size": 5, "reads": "moduli"}, "input_size=5: reads='moduli' needs a real and"),
        ({"input_size": 6, "reads": "both", "directions": 2}, "in each of 2 direction"),
    ],
)
def test_what_cannot_be_read_is_said(arguments, message):
    with pytest.raises(ValueError, match=message):
        Readout(**{"input_size": 6, "output_size": 2, **arguments})
