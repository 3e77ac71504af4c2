from copy import deepcopy

import pytest
import torch

import kron_plugin

kron_plugin.register()

from kron_plugin.modules import KRU, KRULSTM  # noqa: E402
from kron_plugin.optim.factored import (  # noqa: E402
    KronAdam,
    KronAdamConfig,
    KronRMSprop,
    KronRMSpropConfig,
)

OPTIMISERS = [(KronRMSprop, KronRMSpropConfig), (KronAdam, KronAdamConfig)]


def step(optimiser, model, x):
    optimiser.zero_grad()
    model(x)[0].square().sum().backward()
    optimiser.step()


@pytest.mark.parametrize(("optimiser", "config"), OPTIMISERS)
def test_factors_take_smaller_steps(optimiser, config):
    model = KRU(2, 8)
    opt = optimiser(config(lr=[0.01]), list(model.parameters()))
    others, factors, biases = (group["params"] for group in opt.param_groups)
    layer = model.layers[0]
    assert others == [layer.weight, layer.h0]
    assert factors == list(layer.factors)
    assert biases == [layer.bias]
    opt.set_lr(0.02)
    assert [g["lr"] for g in opt.param_groups] == pytest.approx([0.02, 0.002, 0.02])
    assert opt.get_lr() == pytest.approx(0.02)


def test_factors_alone_keep_their_rate_when_resumed():
    model = KRU(2, 8)
    made = [KronAdam(KronAdamConfig(lr=[0.01]), list(model.factors)) for _ in range(2)]
    assert made[0].get_lr() == pytest.approx(0.01)
    made[1].load_state_dict(made[0].state_dict())
    assert made[1].param_groups[0]["lr"] == pytest.approx(0.001)


@pytest.mark.parametrize(
    ("optimiser", "config", "torchs"),
    [(*OPTIMISERS[0], torch.optim.RMSprop), (*OPTIMISERS[1], torch.optim.Adam)],
)
def test_the_fast_ways_of_torch_compute_the_same(optimiser, config, torchs):
    fast, plain = [[torch.nn.Parameter(torch.ones(2, k)) for k in range(1, 5)] for _ in range(2)]
    opt = optimiser(config(lr=[0.01], weight_decay=0.1), fast)
    options = {"alpha": 0.9} if torchs is torch.optim.RMSprop else {}
    expected = torchs(plain, 0.01, weight_decay=0.1, foreach=False, **options)
    for _ in range(20):
        for p, q in zip(fast, plain, strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        opt.step()
        expected.step()
    for p, q in zip(fast, plain, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
    opt.zero_grad()
    assert all(p.grad is None for p in fast)


def test_biases_take_smaller_steps_on_demand():
    opt = KronAdam(KronAdamConfig(lr=[0.01], bias_lr_scale=0.5), list(KRU(2, 8).parameters()))
    assert [g["lr"] for g in opt.param_groups] == pytest.approx([0.01, 0.001, 0.005])
    opt = KronAdam(KronAdamConfig(lr=[0.01]), list(KRULSTM(2, 8, unitary="soft").parameters()))
    assert [g["lr"] for g in opt.param_groups] == pytest.approx([0.01, 0.001])


@pytest.mark.parametrize(("optimiser", "config"), OPTIMISERS)
def test_a_restored_optimiser_goes_on_alike(optimiser, config):
    torch.manual_seed(0)
    x = torch.randn(5, 2, 2)
    straight, resumed = KRU(2, 8), KRU(2, 8)
    resumed.load_state_dict(straight.state_dict())
    first = optimiser(config(lr=[0.01]), list(straight.parameters()))
    step(first, straight, x)
    resumed.load_state_dict(straight.state_dict())
    second = optimiser(config(lr=[0.01]), list(resumed.parameters()))
    saved = deepcopy(first.state_dict())
    assert "fp32_params" not in saved  # they are for half precision
    second.load_state_dict(saved, second.optimizer_config)
    assert [g["lr"] for g in second.param_groups] == pytest.approx([0.01, 0.001, 0.01])
    step(first, straight, x)
    step(second, resumed, x)
    for a, b in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_model_without_factors_has_one_group():
    model = torch.nn.LSTM(2, 3)
    opt = KronAdam(KronAdamConfig(lr=[0.01]), list(model.parameters()))
    assert len(opt.param_groups) == 1


def test_what_cannot_work_is_said():
    with pytest.raises(ValueError, match="--factor-lr-scale=-1"):
        KronAdam(KronAdamConfig(lr=[0.01], factor_lr_scale=-1), list(KRU(1, 2).parameters()))
    with pytest.raises(ValueError, match="--bias-lr-scale=-1"):
        KronAdam(KronAdamConfig(lr=[0.01], bias_lr_scale=-1), list(KRU(1, 2).parameters()))
    flat = [torch.nn.Parameter(torch.zeros(10))]
    with pytest.raises(ValueError, match="--fp16-no-flatten-grads"):
        KronAdam(KronAdamConfig(lr=[0.01]), flat)
    for options in (
        {"kron_adam_betas": [0.9]},
        {"kron_adam_betas": [0.9, 1.0]},
        {"kron_adam_eps": -1.0},
        {"weight_decay": float("nan")},
    ):
        name = next(iter(options)).replace("_", "-")
        with pytest.raises(ValueError, match=f"--{name}="):
            KronAdam(KronAdamConfig(lr=[0.01], **options), list(KRU(1, 2).parameters()))
    with pytest.raises(ValueError, match=r"--rmsprop-decay=1\.5"):
        KronRMSprop(KronRMSpropConfig(lr=[0.01], rmsprop_decay=1.5), list(KRU(1, 2).parameters()))
