"""A run that was killed and started again ends as the run that was never stopped, bit for bit."""

import shutil
import sys

import pytest
import torch

from .conftest import ROOT, run

SIZES = ("--hidden-size", 8, "--batch-size", 4)
TASKS = {
    "copy_memory": ("--delay", 3, "--copy-length", 2, "--train-examples", 22, "--arch", "kru"),
    "adding": ("--steps", 6, "--train-examples", 22, "--arch", "kru"),
    "pixel_mnist": ("--unverified", "--valid-images", 1028, "--arch", "kru"),
    "music": ("--arch", "kru"),
    "char_lm": ("--tokens-per-sample", 8, "--arch", "kru_lm"),
}
TRAINING = (
    *("--criterion", "soft_unitary", "--optimizer", "kron_adam", "--lr", "1e-2"),
    *("--clip-norm", 1, "--max-update", 9, "--save-interval-updates", 2),
    *("--keep-interval-updates", 1, "--best-checkpoint-metric", "loss"),
)


def command(task, tmp_path):
    """What trains a small model for nine updates of a few epochs, with a checkpoint every two."""
    data = ()
    if task == "char_lm":
        data = (tmp_path / "text",)
        data[0].mkdir(exist_ok=True)
        for split in ("train", "valid", "test"):
            (data[0] / f"{split}.txt").write_text("the cat sat on the mat\n" * 8)
    elif task in ("pixel_mnist", "music"):
        data = (tmp_path / "data",)
        run(sys.executable, ROOT / "recipes" / "smoke_data.py", task, *data, cwd=tmp_path)
    return (*data, "--task", task, *SIZES, *TASKS[task], *TRAINING)


def load(out, name="last"):
    return torch.load(out / f"checkpoint_{name}.pt", weights_only=True)


def assert_same_end(out, expected):
    """Parameters and optimiser are those of a run never stopped."""
    have, want = load(out), load(expected)
    assert have["optimizer_history"][-1]["num_updates"] == 9
    assert all(torch.equal(have["model"][k], v) for k, v in want["model"].items())
    have, want = have["last_optimizer_state"], want["last_optimizer_state"]
    for i, state in want["state"].items():
        assert all(torch.equal(have["state"][i][k], v) for k, v in state.items())


@pytest.mark.parametrize("task", list(TASKS))
def test_killed_amid_an_epoch(task, forked_train, tmp_path):
    args = command(task, tmp_path)
    straight = forked_train("straight", *args)
    forked_train("killed", *args, kill=("fairseq.trainer.Trainer.train_step", 4))
    killed = load(tmp_path / "killed")
    assert killed["extra_state"]["train_iterator"]["iterations_in_epoch"] == 2
    assert_same_end(forked_train("killed", *args), straight)
