"""A killed and resumed run ends like a run that was never stopped, with any options."""

import json

import pytest
import torch
from fairseq.optim.lr_scheduler import LR_SCHEDULER_REGISTRY

from kron_plugin.checkpoints import load

from .conftest import PACKAGE

STOPS = "3,6"  # updates: within an epoch, and at the end of one
TRAINING = (
    *("--hidden-size", 4, "--criterion", "soft_unitary", "--optimizer", "kron_adam"),
    *("--lr", "1e-2", "--clip-norm", 1, "--max-epoch", 5, "--no-epoch-checkpoints", "--cpu"),
    *("--num-workers", 0, "--save-interval-updates", 1, "--keep-interval-updates", 1),
    *("--user-dir", PACKAGE, "--log-format", "none"),
)
COPY = (  # two batches an epoch
    *("--task", "copy_memory", "--delay", 2, "--copy-length", 2, "--train-examples", 7),
    *("--eval-examples", 3, "--batch-size", 4, "--arch", "kru"),
)
WORSE = ("--maximize-best-checkpoint-metric",)  # every epoch is worse, because the loss falls
PLATEAU = ("--lr-scheduler", "reduce_lr_on_plateau", "--lr-shrink", 0.5, *WORSE)
# One for each scheduler, with other options and counters of a run.
OPTIONS = {
    "cosine": (
        *("--warmup-updates", 2, "--lr-period-updates", 3, "--t-mult", 1.5),
        *("--curriculum", 2, "--batch-size", 3, "--max-epoch", 4),
    ),
    "fixed": (
        *("--lr", "1e-2,2e-2,5e-3", "--force-anneal", 3, "--warmup-updates", 4),
        *("--update-freq", "1,2", "--batch-size", 2, "--max-epoch", 4),
    ),
    "inverse_sqrt": ("--warmup-updates", 4, "--store-ema", "--ema-decay", 0.9, "--ema-fp32"),
    "manual": (
        *("--epoch2lr", "{'1':1e-2,'3':1e-3}", "--update2lr", "{'7':3e-3}"),
        *("--store-ema", "--ema-decay", 0.9, "--ema-update-freq", 2, "--ema-start-update", 2),
    ),
    "polynomial_decay": (
        *("--total-num-update", 10, "--force-anneal", 2, "--warmup-updates", 2, "--power", 2),
    ),
    "reduce_lr_on_plateau": (*PLATEAU, "--lr-patience", 1, "--validate-interval-updates", 3),
    "step": ("--lr-deacy-period", 3, "--warmup-updates", 2, "--patience", 6, *WORSE),
    "tri_stage": ("--warmup-steps", 2, "--hold-steps", 3, "--decay-steps", 4),
    "triangular": ("--max-lr", 0.05, "--lr-period-updates", 4),
    "plateau after a warm-up": (*PLATEAU, "--warmup-updates", 3),
    "--stop-min-lr": (*PLATEAU, "--stop-min-lr", "2e-3"),
}
# Each group of parameters has its own optimiser; the command line has no options for that.
GROUP = {
    "lr_float": 1e-2,
    "optimizer": {"_name": "adam"},
    "lr_scheduler": {"_name": "polynomial_decay", "total_num_update": 10, "force_anneal": 2},
}
CHANGES = {
    "pass_through": {
        "lr_scheduler": {"_name": "pass_through"},
        "optimizer": {
            "_name": "composite",
            "groups": dict.fromkeys(("default", "factors", "biases"), GROUP),
        },
    },
}


def test_every_scheduler_of_fairseq_is_tried():
    assert set(LR_SCHEDULER_REGISTRY) <= {*OPTIONS, *CHANGES}


@pytest.mark.parametrize("name", [*OPTIONS, *CHANGES])
def test_options_that_a_resumed_run_has_to_remember(name, forked_in, tmp_path):
    options = OPTIONS.get(name, ())
    if name in LR_SCHEDULER_REGISTRY and name not in CHANGES:
        options = ("--lr-scheduler", name, *options)
    changes = {"CHANGES": json.dumps(CHANGES.get(name, {}))}
    assert_same_end(forked_in, tmp_path, *COPY, *TRAINING, *options, env=changes)


def test_batches_that_fairseq_keeps_for_all_epochs(forked_in, tmp_path):
    for split, count in (("train", 40), ("valid", 3)):
        lines = [f"{i % 7} {i % 5} {i % 3}" for i in range(count)]
        (tmp_path / f"{split}.txt").write_text("\n".join(lines) + "\n")
    prefixes = ("--trainpref", "train.txt", "--validpref", "valid.txt", "--only-source")
    forked_in(tmp_path, "fairseq_cli.preprocess", *prefixes, "--destdir", "data")
    task = ("data", "--task", "language_modeling", "--arch", "kru_lm", "--tokens-per-sample", 9)
    assert_same_end(forked_in, tmp_path, *task, "--batch-size", 9, *TRAINING)


def assert_same_end(forked_in, folder, *args, env=None):
    """A killed run has the numbers, states and parameters of a run that was never stopped."""
    done = forked_in(folder, "resumed", STOPS, *args, "--save-dir", folder, env=env)
    assert done.returncode == 0, done.stdout[-3000:]
    have, want = (load(folder / run / "checkpoint_last.pt") for run in ("resumed", "straight"))
    for state in (have, want):
        state["optimizer_history"] = state["optimizer_history"][-1]  # it has one for each start
    assert want["optimizer_history"]["num_updates"] > 6
    for part in ("optimizer_history", "extra_state", "last_optimizer_state", "model"):
        assert_same(have[part], want[part], part)


def assert_same(have, want, where):
    """The values are the same, except times."""
    if isinstance(want, dict):
        assert have.keys() == want.keys(), where
        for key in want.keys() - {"metrics", "previous_training_time"}:
            assert_same(have[key], want[key], f"{where}.{key}")
    elif torch.is_tensor(want):
        assert torch.equal(have, want), where
    else:
        assert have == want, where


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--patience", 2, *WORSE), "--patience is reached"),
        (("--stop-time-hours", 1e-6), "--stop-time-hours is reached"),
        (("--stop-min-lr", 1), "smaller than or equal to minimum learning rate"),
    ],
)
def test_a_run_that_has_stopped_stays_as_it_is(options, reason, train_on, tmp_path):
    args = (*COPY, *TRAINING[:-4], *options, "--log-format", "none")
    last = train_on(tmp_path / "run", *args) / "checkpoint_last.pt"
    before = last.exists() and last.stat().st_mtime_ns
    out = train_on(tmp_path / "run", *args)
    assert reason in (out / "output_0").read_text()
    assert (last.exists() and last.stat().st_mtime_ns) == before
