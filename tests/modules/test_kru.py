import pickle
from copy import deepcopy
from math import log2

import pytest
import torch
from torch import nn

from kron_plugin.modules import KRU
from kron_plugin.ops import available_backends, kron_rnn


@pytest.mark.parametrize("n", [2, 8, 128, 512])
def test_two_by_two_factors_need_eight_numbers_each(n):
    assert KRU(1, n).recurrent_parameters() == 8 * log2(n)


def test_512_units_have_72_recurrent_parameters():
    kru = KRU(1, 512)
    assert kru.recurrent_parameters() == 72
    assert "72" in repr(kru)
    assert "512" in repr(kru)


@pytest.mark.parametrize("complex", [True, False])
def test_shapes_are_those_of_torch_rnn(complex):
    kru = KRU(3, 6, complex=complex)
    width = 12 if complex else 6
    output, h_n = kru(torch.randn(5, 2, 3))
    assert output.shape == (5, 2, width)
    assert kru.output_size == width
    assert h_n.shape == (1, 2, width)
    assert torch.equal(output[-1], h_n[0])


def test_given_start_and_batch_first():
    kru = KRU(3, 8)
    first = KRU(3, 8, batch_first=True)
    first.load_state_dict(kru.state_dict())
    x, h0 = torch.randn(5, 2, 3), torch.randn(1, 2, 16)
    output, h_n = kru(x, h0)
    output_first, h_n_first = first(x.transpose(0, 1), h0)
    assert torch.equal(output_first, output.transpose(0, 1))
    assert torch.equal(h_n_first, h_n)
    with_lengths, _ = kru(x, h0, lengths=torch.tensor([2, 5]))
    assert torch.equal(with_lengths[4, 0], output[1, 0])


def test_running_on_from_a_state_equals_running_through():
    kru = KRU(3, 8).double()
    x = torch.randn(7, 2, 3, dtype=torch.float64)
    through, _ = kru(x)
    first, h = kru(x[:4])
    second, _ = kru(x[4:], h)
    torch.testing.assert_close(torch.cat([first, second]), through)


def test_symbols_are_one_hot_features():
    kru = KRU(6, 8)
    symbols = torch.randint(6, (5, 2))
    one_hot = torch.nn.functional.one_hot(symbols, 6).float()
    torch.testing.assert_close(kru(symbols), kru(one_hot))


def test_starts_unitary_and_away_from_zero():
    kru = KRU(1, 64)
    assert kru.unitary_penalty() < 1e-10
    assert kru.unitary_deviation() < 1e-5
    torch.testing.assert_close(kru.singular_values(), torch.ones(64))
    assert kru.layers[0].h0.abs().max() > 0.01


def test_every_parameter_is_real_and_gets_a_gradient():
    kru = KRU(2, 8)
    output, _ = kru(torch.randn(6, 3, 2))
    (output.square().sum() + kru.unitary_penalty()).backward()
    for name, parameter in kru.named_parameters():
        assert not parameter.is_complex(), name
        assert parameter.grad.ne(0).any(), name
    assert sum("factors" in name for name, _ in kru.named_parameters()) == 3
    assert {p.param_group for p in kru.factors} == {"factors"}


@pytest.mark.parametrize("unitary", ["soft", "hard"])
@pytest.mark.parametrize(
    "copy",
    [
        deepcopy,
        lambda kru: pickle.loads(pickle.dumps(kru)),
        lambda kru: kru.to("meta").to_empty(device="cpu"),
        lambda kru: (kru.load_state_dict(deepcopy(kru.state_dict()), assign=True), kru)[1],
    ],
)
def test_a_copy_keeps_its_parameters_marked(copy, unitary):
    copy = copy(KRU(2, 8, unitary=unitary))
    assert [p.param_group for p in copy.factors] == ["factors"] * 3
    assert copy.layers[0].bias.param_group == "biases"
    assert not hasattr(copy.layers[0].weight, "param_group")


def test_factors_put_in_a_list_are_marked():
    factors = KRU(2, 8).layers[0].factors
    factors[1] = nn.Parameter(torch.zeros(2, 2, 2))
    factors.append(nn.Parameter(torch.zeros(2, 2, 2)))
    assert [p.param_group for p in factors] == ["factors"] * 4
    assert [p.param_group for p in factors[1:3]] == ["factors"] * 2


def test_layer_is_the_operator_on_its_parameters():
    kru = KRU(2, 8, factors="2x4,4x2")
    x, h0 = torch.randn(4, 3, 2), torch.randn(1, 3, 16)
    factors = [torch.view_as_complex(f) for f in kru.factors]
    (layer,) = kru.layers
    expected, _ = kron_rnn(x @ layer.weight, factors, layer.bias, h0[0], backend="reference")
    torch.testing.assert_close(kru(x, h0)[0], expected)


def copy_to_torch(layer, reference, suffix="l0"):
    """The weights of a layer with one N×N factor a gate, in torch's names."""
    n = layer.hidden_size
    with torch.no_grad():
        getattr(reference, f"weight_ih_{suffix}").copy_(layer.weight.t())
        getattr(reference, f"weight_hh_{suffix}").copy_(torch.cat(layer.matrices()).view(-1, n))
        if reference.bias:
            getattr(reference, f"bias_ih_{suffix}").copy_(layer.bias)
            getattr(reference, f"bias_hh_{suffix}").zero_()


def test_one_real_factor_and_tanh_make_torch_rnn():
    kru = KRU(3, 8, factors="8", complex=False, activation="tanh").double()
    rnn = torch.nn.RNN(3, 8).double()
    copy_to_torch(kru.layers[0], rnn)
    x, h0 = torch.randn(6, 2, 3).double(), torch.randn(1, 2, 8).double()
    torch.testing.assert_close(kru(x, h0), rnn(x, h0), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("backend", available_backends())
@pytest.mark.parametrize("need_output", [True, False])
def test_what_is_not_finite_is_reported_with_its_step(bad, backend, need_output):
    kru = KRU(1, 4, check_finite=True, backend=backend)
    x = torch.zeros(6, 2, 1)
    kru(x, need_output=need_output)
    x[3, 1] = bad
    with pytest.raises(RuntimeError, match="after step 3"):
        kru(x, need_output=need_output)


def test_the_last_state_alone_is_the_same_and_trains_alike():
    x = torch.randn(7, 2, 1)
    gradients = []
    for options, need_output in (({}, True), ({}, False), ({"checkpoint_every": 3}, False)):
        torch.manual_seed(0)
        kru = KRU(1, 8, **options).double()
        output, h_n = kru(x.double(), need_output=need_output)
        assert bool(output.numel()) == need_output
        h_n.square().sum().backward()
        gradients.append([h_n, *(p.grad for p in kru.parameters())])
    torch.testing.assert_close(gradients[1], gradients[0])
    torch.testing.assert_close(gradients[2], gradients[0])


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"input_size": 0, "hidden_size": 4}, "input_size=0"),
        ({"input_size": 1, "hidden_size": 0}, "hidden_size=0"),
        ({"input_size": 1, "hidden_size": 6, "factors": "2,2"}, "multiply to 4"),
        ({"input_size": 1, "hidden_size": 4, "activation": "tanh"}, "complex=False"),
        ({"input_size": 1, "hidden_size": 4, "activation": "relu"}, "activation='relu'"),
        ({"input_size": 1, "hidden_size": 4, "backend": "fast"}, "backend='fast'"),
        ({"input_size": 1, "hidden_size": 4, "checkpoint_every": 0}, "checkpoint_every=0"),
        ({"input_size": 1, "hidden_size": 4, "num_layers": 0}, "num_layers=0"),
        ({"input_size": 1, "hidden_size": 4, "dropout": 1.5}, "dropout=1.5"),
        ({"input_size": 1, "hidden_size": 4, "unitary": "very"}, "unitary='very'"),
    ],
)
def test_what_does_not_fit_is_said(kwargs, message):
    with pytest.raises(ValueError, match=message):
        KRU(**kwargs)


def test_a_start_that_is_not_used_has_a_gradient_of_zero():
    """DistributedDataParallel waits for every gradient, also if a state is carried."""
    kru = KRU(2, 8)
    x = torch.randn(4, 3, 2)
    _, h = kru(x)
    output, _ = kru(x, h.detach())
    output.sum().backward()
    assert torch.equal(kru.layers[0].h0.grad, torch.zeros(16))
    with torch.no_grad():
        assert torch.equal(kru(x, h)[0], output)
