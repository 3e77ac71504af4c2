"""A killed and restarted run ends like a run that was never stopped, bit for bit."""

import os
import shutil
import sys

import pytest
import torch

from kron_plugin import saving
from kron_plugin.checkpoints import is_damaged
from kron_plugin.cli.curve import read_log
from kron_plugin.cli.record import training
from kron_plugin.resume import latest_whole

from .conftest import ROOT, ledger, run

GENERATED = [row["recipe"] for row in ledger("quick") if row["data"] == "generated"]
SIZES = ("--hidden-size", 8, "--batch-size", 4, "--batch-size-valid", 1050)
EXAMPLES = ("--train-examples", 22, "--eval-examples", 5)
OPTIONS = {  # added to every task's, for six to ten updates an epoch
    "pixel_mnist": ("--unverified", "--valid-images", 1028),
    "char_lm": ("--arch", "kru_lm", "--tokens-per-sample", 1900),
}
TRAINING = (
    *("--criterion", "soft_unitary", "--optimizer", "kron_adam", "--lr", "1e-2"),
    *("--clip-norm", 1, "--max-update", 9, "--save-interval-updates", 2),
    *("--keep-interval-updates", 1, "--best-checkpoint-metric", "loss"),
)


def command(task, tmp_path):
    """A command that trains a small model for nine updates, with a checkpoint every two."""
    data = EXAMPLES
    if task not in GENERATED:
        data = (tmp_path / "data",)
        run(sys.executable, ROOT / "recipes" / "smoke_data.py", task, *data, cwd=tmp_path)
    return (*data, "--task", task, "--arch", "kru", *SIZES, *OPTIONS.get(task, ()), *TRAINING)


def load(out, name="last"):
    return torch.load(out / f"checkpoint_{name}.pt", weights_only=True)


def assert_same_end(out, expected):
    """Parameters and optimiser equal those of a run that was never stopped."""
    have, want = load(out), load(expected)
    assert have["optimizer_history"][-1]["num_updates"] == 9
    assert all(torch.equal(have["model"][k], v) for k, v in want["model"].items())
    have, want = have["last_optimizer_state"], want["last_optimizer_state"]
    for i, state in want["state"].items():
        assert all(torch.equal(have["state"][i][k], v) for k, v in state.items())


@pytest.mark.parametrize("task", [row["recipe"] for row in ledger("smoke")])
def test_killed_amid_an_epoch(task, train_on, tmp_path):
    args = command(task, tmp_path)
    straight = train_on(tmp_path / "straight", *args)
    train_on(tmp_path / "killed", *args, kill=("fairseq.trainer.Trainer.train_step", 4))
    killed = load(tmp_path / "killed")
    assert killed["extra_state"]["train_iterator"]["iterations_in_epoch"] == 2
    assert_same_end(train_on(tmp_path / "killed", *args), straight)


@pytest.mark.parametrize(
    ("function", "number"),
    [("torch.save", 2), ("shutil.copyfile", 2), ("shutil.copyfile", 3), ("shutil.copyfile", 8)],
)
def test_killed_while_a_checkpoint_is_written(function, number, straight, train_on, tmp_path):
    args, expected = straight
    killed = train_on(tmp_path / "killed", *args, kill=(function, number))
    assert not any(is_damaged(path) for path in killed.glob("*.pt"))
    assert len(list(killed.glob(".*.part"))) == 1
    assert_same_end(train_on(tmp_path / "killed", *args), expected)
    assert not list(killed.glob(".*.part"))


def test_a_full_disk(straight, train_on, tmp_path):
    """The run ends in one line and keeps the whole checkpoints."""
    args, expected = straight
    out = train_on(tmp_path / "full", *args, "--max-update", 2)
    before = {path.name: path.read_bytes() for path in out.glob("*.pt")}
    (out / "checkpoint_1_4.pt.tmp").write_bytes(b"left by an earlier version")
    last = out / "checkpoint_last.pt"
    train_on(out, *args, limit=last.stat().st_size - 2000, expect=1)
    assert "Traceback" not in (out / "output_0").read_text()
    said = (out / "output_0").read_text().splitlines()[-1]
    assert f"--save-dir {out}: the checkpoint could not be saved: File too large" in said
    assert {path.name: path.read_bytes() for path in out.iterdir() if ".pt" in path.name} == before
    assert_same_end(train_on(out, *args), expected)


def test_one_training_at_a_time_saves_into_a_folder(straight, train_on, tmp_path):
    args, _ = straight
    out = tmp_path / "run"
    out.mkdir()
    saving.lock(out)
    train_on(out, *args, "--max-update", 2, expect=1)
    said = (out / "output_0").read_text().splitlines()[-1]
    assert f"--save-dir {out}: process {os.getpid()} on " in said
    assert "is training into this folder" in said
    assert not list(out.glob("*.pt"))
    train_on(out, *args, "--max-update", 2, "--no-save")
    saving._held.pop(out).close()  # as the kernel does when a process ends
    train_on(out, *args, "--max-update", 2)


def test_truncated_last_checkpoint(straight, train_on, tmp_path):
    """The one before it is used, also at the end of training. The file is made whole again."""
    args, expected = straight
    out = tmp_path / "damaged"
    train_on(out, *args, "--max-update", 6)
    for updates in (6, 9):
        last = out / "checkpoint_last.pt"
        last.write_bytes(last.read_bytes()[:5000])
        train_on(out, *args, "--max-update", updates)
        assert "checkpoint_last.pt is damaged; going on from checkpoint_" in (
            (out / "output_0").read_text()
        )
    assert_same_end(out, expected)


def test_a_damaged_checkpoint_of_another_run_is_left_alone(straight, train_on, tmp_path):
    args, expected = straight
    shutil.copytree(expected, tmp_path / "other")
    last = tmp_path / "other" / "checkpoint_last.pt"
    last.write_bytes(last.read_bytes()[:5000])
    out = train_on(tmp_path / "run", *args, "--finetune-from-model", last, expect=1)
    assert "checkpoint_last.pt: not a readable checkpoint" in (out / "output_0").read_text()
    assert last.stat().st_size == 5000


@pytest.fixture(scope="module")
def straight(train_on, tmp_path_factory):
    """A command and the folder of its run that was never stopped."""
    folder = tmp_path_factory.mktemp("straight")
    args = command("char_lm", folder)
    return args, train_on(folder / "run", *args)


def test_killed_on_two_workers(straight, train_on, tmp_path):
    args, _ = straight
    expected = train_on(tmp_path / "two", *args, workers=2)
    train_on(tmp_path / "killed", *args, workers=2, kill=("fairseq.trainer.Trainer.train_step", 3))
    assert_same_end(train_on(tmp_path / "killed", *args, workers=2), expected)
    # Both workers find that they are done; one that did not load would wait for the other.
    train_on(expected, *args, workers=2)
    assert "nothing is left to train" in (expected / "train.log").read_text()


def test_a_finished_run_stays_as_it_is(straight, train_on, tmp_path):
    args, out = straight
    before = (out / "checkpoint_last.pt").stat().st_mtime_ns
    train_on(out, *args)
    assert (out / "checkpoint_last.pt").stat().st_mtime_ns == before
    assert "--max-update is reached" in (out / "output_0").read_text()
    said = (out / "train.log").read_text().splitlines()
    (out / "train.log").write_text("\n".join(x for x in said if "done training in" not in x))
    assert training(read_log(out / "train.log"), out / "train.log")["finished"]


@pytest.mark.parametrize("change", [("--batch-size", 2), ("--tokens-per-sample", 9)])
def test_other_streams_amid_an_epoch_are_refused(change, straight, train_on, tmp_path):
    args, expected = straight
    shutil.copytree(expected, tmp_path / "killed")
    assert load(tmp_path / "killed")["extra_state"]["train_iterator"]["iterations_in_epoch"]
    out = train_on(tmp_path / "killed", *args, *change, "--max-update", 12, expect=1)
    last = (out / "output_0").read_text().splitlines()[-1]
    assert ": --batch-size, --tokens-per-sample: the checkpoint is from amid an epoch" in last
    train_on(tmp_path / "killed", *args, *change, "--max-update", 12, "--reset-dataloader")


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "checkpoint_last.pt"
    torch.save({"weight": torch.arange(1000.0)}, path)
    return path


@pytest.mark.parametrize("length", [0, 1, 2, 100, 2000, -1])
def test_truncated_checkpoints_are_damaged(length, checkpoint):
    assert not is_damaged(checkpoint)
    checkpoint.write_bytes(checkpoint.read_bytes()[:length])
    assert is_damaged(checkpoint)


def test_altered_checkpoints_are_damaged(checkpoint):
    content = bytearray(checkpoint.read_bytes())
    content[len(content) // 2] ^= 1
    checkpoint.write_bytes(content)
    assert is_damaged(checkpoint)


def test_the_latest_whole_checkpoint_is_taken(checkpoint, caplog):
    assert latest_whole(checkpoint) == checkpoint
    assert latest_whole(checkpoint.with_name("absent.pt")).name == "absent.pt"
    content = checkpoint.read_bytes()
    checkpoint.write_bytes(content[:100])
    with pytest.raises(ValueError, match=r"checkpoint_last\.pt: damaged, and no whole checkpoint"):
        latest_whole(checkpoint)
    for age, name in enumerate(["checkpoint_1_6.pt", "checkpoint_1_4.pt", "checkpoint_1_2.pt"]):
        checkpoint.with_name(name).write_bytes(content[: 100 if age == 0 else None])
        os.utime(checkpoint.with_name(name), (1000 - age, 1000 - age))
    assert latest_whole(checkpoint).name == "checkpoint_1_4.pt"
    assert "checkpoint_last.pt is damaged; going on from checkpoint_1_4.pt" in caplog.text
