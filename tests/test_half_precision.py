"""Training in half precision ends near training in float32."""

from copy import deepcopy

import pytest
import torch
from fairseq.optim import FP16Optimizer, build_optimizer
from omegaconf import OmegaConf

from kron_plugin import register

from .conftest import PACKAGE

register()

from kron_plugin.modules import KRU  # noqa: E402

HYDRA = """# @package _group_
common: {{user_dir: {user_dir}, {common}, seed: 1}}
task: {{_name: copy_memory, delay: 3, copy_length: 2, train_examples: 64, eval_examples: 32}}
model: {{_name: kru, hidden_size: 16}}
criterion: {{_name: soft_unitary, unitary_penalty: 0.5}}
optimizer: {{_name: kron_adam}}
lr_scheduler: {{_name: fixed}}
dataset: {{batch_size: 16, num_workers: 0}}
optimization: {{lr: [0.01], max_update: 40, clip_norm: 1.0}}
checkpoint: {{save_dir: {out}, no_epoch_checkpoints: true}}
"""


FP16 = "fp16: true, fp16_no_flatten_grads: true"
BF16 = "bf16: true"
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")


def train_by_hydra(forked, out, common, updates=40):
    """The checkpoint after so many updates."""
    out.mkdir(exist_ok=True)
    text = HYDRA.format(user_dir=PACKAGE, common=common, out=out)
    (out / "small.yaml").write_text(text)
    args = ("--config-dir", out, "--config-name", "small", f"hydra.run.dir={out}")
    args += (f"optimization.max_update={updates}",)
    result = forked("fairseq_cli.hydra_train", *args)
    assert result.returncode == 0, result.stdout[-3000:]
    return torch.load(out / "checkpoint_last.pt", weights_only=True, map_location="cpu")


@pytest.mark.parametrize(
    ("place", "precision"),
    [
        ("cpu: true", BF16),
        pytest.param("cpu: false", BF16, marks=on_gpu, id="bf16 on a gpu"),
        pytest.param("cpu: false", FP16, marks=on_gpu, id="fp16 on a gpu"),
    ],
)
def test_half_precision_through_fairseq_hydra_train(place, precision, forked, tmp_path):
    """After forty updates factors agree to 0.01, and the loss with its penalty to 5 %."""
    single = train_by_hydra(forked, tmp_path / "single", place)
    half = train_by_hydra(forked, tmp_path / "half", f"{place}, {precision}")
    assert half["cfg"]["common"][precision[:4]]
    for name in [name for name in single["model"] if "factors" in name]:
        have, want = half["model"][name], single["model"][name]
        assert not torch.equal(have, want)
        torch.testing.assert_close(have.float(), want, rtol=0, atol=0.01)
    have, want = (state["extra_state"]["val_loss"] for state in (half, single))
    assert have == pytest.approx(want, rel=0.05)


def test_bfloat16_resumes_exactly(forked, tmp_path):
    straight = train_by_hydra(forked, tmp_path / "straight", f"cpu: true, {BF16}", 6)
    train_by_hydra(forked, tmp_path / "resumed", f"cpu: true, {BF16}", 3)
    resumed = train_by_hydra(forked, tmp_path / "resumed", f"cpu: true, {BF16}", 6)
    for name, value in straight["model"].items():
        assert torch.equal(resumed["model"][name], value)
    have, want = (s["last_optimizer_state"]["fp32_params"] for s in (resumed, straight))
    assert len(want) > 3
    assert all(map(torch.equal, have, want))


def steps(kru, optimiser, x, dtype):
    """Five updates that count; returns how many overflowed besides."""
    overflows = done = 0
    while done < 5:
        optimiser.zero_grad()
        _, h_n = kru(x.to(dtype))
        penalty = kru.unitary_penalty()
        assert penalty.dtype == torch.float32
        optimiser.backward((h_n.float() - 1).square().mean() + 0.5 * penalty)
        try:
            optimiser.clip_grad_norm(1.0)
        except OverflowError:
            overflows += 1
            continue
        optimiser.step()
        done += 1
    return overflows


def test_float16_with_fairseqs_loss_scaling():
    """Factors agree to 0.005 after five updates, those that overflow left out."""
    scaling = {"fp16_init_scale": 2**24, "fp16_scale_window": 128, "fp16_scale_tolerance": 0}
    limits = {"threshold_loss_scale": None, "min_loss_scale": 1e-4}
    common = {"fp16_no_flatten_grads": True, **scaling, **limits}
    optimizer = {"_name": "kron_adam", "lr": [0.01]}
    cfg = OmegaConf.create({"common": common, "optimizer": optimizer})
    single = KRU(2, 16)
    half = deepcopy(single).half()
    x = torch.randn(7, 3, 2)
    optimiser = FP16Optimizer.build_optimizer(cfg, list(half.parameters()))
    assert steps(half, optimiser, x, torch.float16) > 0
    assert steps(single, build_optimizer(cfg.optimizer, list(single.parameters())), x, None) == 0
    assert optimiser.scaler.loss_scale < 2**24
    for have, want in zip(half.factors, single.factors, strict=True):
        torch.testing.assert_close(have.float(), want, rtol=0, atol=5e-3)
