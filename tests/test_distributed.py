"""Several processes train one model, the same as one process on the same examples."""

import json

import pytest
import torch

from kron_plugin import register
from kron_plugin.checkpoints import load
from kron_plugin.workers import time_limit

from .conftest import ledger
from .test_resume import command

register()

from kron_plugin.tasks.copy_memory import CopyMemoryConfig, CopyMemoryTask  # noqa: E402

WAYS = {
    "one batch": (1, "--batch-size", 6),
    "accumulated": (1, "--batch-size", 2, "--update-freq", 3),
    "two workers": (2, "--batch-size", 3),
    # One worker has batches 0 and 2; the other has batch 1, then none.
    "two workers, accumulated": (2, "--batch-size", 2, "--update-freq", 2),
}


def numbers(out, tag):
    """The last numbers of "train" or "valid" in a run's log."""
    lines = (out / "train.log").read_text().splitlines()
    (*_, last) = [json.loads(line) for line in lines if f'"{tag}_loss"' in line]
    return {key.removeprefix(f"{tag}_"): float(value) for key, value in last.items()}


def test_every_way_to_take_the_same_examples_is_the_same(train_on, tmp_path):
    """Parameters after five updates, with a large penalty, and the metrics."""
    outs = {}
    for way, (workers, *sizes) in WAYS.items():
        outs[way] = train_on(
            tmp_path / way.replace(" ", "_"),
            *("--task", "copy_memory", "--delay", 3, "--copy-length", 2, "--arch", "kru"),
            *("--hidden-size", 8, "--train-examples", 6, "--eval-examples", 5, *sizes),
            *("--criterion", "soft_unitary", "--unitary-penalty", 2, "--max-epoch", 5),
            *("--optimizer", "nag", "--lr", 0.05, "--batch-size-valid", 2),
            workers=workers,
        )
    expected = torch.load(outs["one batch"] / "checkpoint_last.pt", weights_only=True)["model"]
    for out in outs.values():
        have = torch.load(out / "checkpoint_last.pt", weights_only=True)["model"]
        torch.testing.assert_close(have, expected, rtol=1e-5, atol=1e-6)
        for tag in ("train", "valid"):
            want = numbers(outs["one batch"], tag)
            found = numbers(out, tag)
            for name in ("loss", "penalty", "bits", "recall", "baseline"):
                assert found[name] == pytest.approx(want[name], rel=1e-4), (tag, name)


def test_a_worker_without_a_last_batch_counts_those_it_had(train_on, forked_in, tmp_path):
    """The task is one of fairseq's, and fairseq counts its batches."""
    for split in ("train", "valid"):
        lines = [f"{i} {i % 3} {i % 5} {i % 7}" for i in range(6)]
        (tmp_path / f"{split}.txt").write_text("\n".join(lines) + "\n")
    prefixes = ("--trainpref", "train.txt", "--validpref", "valid.txt", "--only-source")
    forked_in(tmp_path, "fairseq_cli.preprocess", *prefixes, "--destdir", "data")
    args = (
        *(tmp_path / "data", "--task", "language_modeling", "--arch", "kru_lm"),
        *("--tokens-per-sample", 10, "--batch-size", 1, "--hidden-size", 4, "--max-epoch", 2),
        *("--criterion", "soft_unitary", "--optimizer", "nag", "--lr", 0.05),
    )
    one = train_on(tmp_path / "one", *args, "--update-freq", 3)
    two = train_on(tmp_path / "two", *args, "--update-freq", 2, workers=2)
    have, want = (load(out / "checkpoint_last.pt")["model"] for out in (two, one))
    torch.testing.assert_close(have, want, rtol=1e-5, atol=1e-6)
    assert numbers(two, "train")["wpb"] == numbers(one, "train")["wpb"] == 30


@pytest.mark.parametrize("task", [row["recipe"] for row in ledger("smoke")])
def test_metrics_count_every_example_once(task, train_on, tmp_path):
    """On one worker and on two, in batches of unequal size, with a model that does not change."""
    args = (*command(task, tmp_path), "--max-update", 1, "--lr", 1e-12, "--unitary-penalty", 0)
    one = numbers(train_on(tmp_path / "one", *args), "valid")
    two = numbers(train_on(tmp_path / "two", *args, "--batch-size-valid", 3, workers=2), "valid")
    timings = ("wps", "wpb", "bsz", "wall", "num_updates")
    names = [name for name in one if name not in timings and name in two]
    assert len(names) >= 5
    for name in names:
        assert two[name] == pytest.approx(one[name], rel=1e-4), name
    if task == "char_lm":
        assert two["wpb"] == one["wpb"]


def test_processes_that_would_train_models_of_their_own_are_refused(monkeypatch):
    task = CopyMemoryTask(CopyMemoryConfig())
    task.begin_epoch(1, None)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"\$WORLD_SIZE=2: .* recipes/distributed\.sh"):
        task.begin_epoch(1, None)


def test_a_worker_that_stops_is_named_in_time(train_on, tmp_path):
    out = train_on(
        tmp_path / "run",
        *command("copy_memory", tmp_path),
        workers=3,
        stop=("fairseq.trainer.Trainer.train_step", 3),
        env={"KRON_TIMEOUT": "2"},
        expect=1,
    )
    outputs = [out / f"output_{rank}" for rank in range(3)]
    for output in outputs[:2]:
        assert (
            output.read_text()
            .splitlines()[-1]
            .endswith(": worker 2 does not answer (limit 2 s, $KRON_TIMEOUT)")
        )
        assert output.stat().st_mtime < outputs[2].stat().st_mtime  # the time of the kill


def test_a_worker_that_fails_is_named_by_the_others(train_on, tmp_path):
    """The others say what ended it."""
    args = (*command("copy_memory", tmp_path), "--train-examples", 3)
    fail = ("fairseq.trainer.Trainer.train_step", 3)
    out = train_on(tmp_path / "run", *args, workers=2, fail=fail, expect=1)
    *_, said = (out / "output_0").read_text().splitlines()
    assert said.endswith(": worker 1 has ended: KeyError: 'for a test'")


@pytest.mark.parametrize("limit", ["0", "-1", "soon", "nan"])
def test_the_limit_is_a_number_of_seconds(limit, monkeypatch):
    monkeypatch.setenv("KRON_TIMEOUT", limit)
    with pytest.raises(ValueError, match=r"\$KRON_TIMEOUT=.*: must be a number of seconds above 0"):
        time_limit()
