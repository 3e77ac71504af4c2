"""A record's numbers from a log and its surroundings; tests/test_recipes.py makes whole records."""

import json
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from kron_plugin.cli import record
from kron_plugin.cli.curve import curves, read_log
from kron_plugin.cli.main import main
from kron_plugin.restore import require_data, weights_alone

from ..conftest import run


@pytest.fixture
def log(tmp_path):
    """A training that was resumed, as fairseq logs it: numbers as strings, lines repeated."""
    entries = [
        {"mse": "0.5", "num_updates": "10", "train_wall": "99", "wall": "3"},
        {"mse": "0.4", "num_updates": "20", "train_wall": "99", "wall": "5"},
        {"mse": "0.3", "num_updates": "20", "train_wall": "99", "wall": "6"},
        {"valid_mse": "0.35", "valid_num_updates": "20"},
        {"valid_mse": "0.35", "valid_num_updates": "20"},
        {
            "train_mse": "0.4",
            "train_num_updates": "25",
            "train_train_wall": "99",
            "train_wall": "8",
        },
    ]
    path = tmp_path / "train.log"
    path.write_text("\n".join(json.dumps(entry) for entry in entries))
    return path


def test_each_update_is_told_once_as_last_seen(log):
    assert curves(read_log(log), "mse") == {
        "training": [(10, 0.5), (20, 0.3)],
        "validation": [(20, 0.35)],
    }


def test_the_time_of_a_training_and_whether_it_ended(log):
    ended_early = {"updates": 25, "seconds": 8.0, "finished": False}
    assert record.training(read_log(log), log) == ended_early
    log.write_text(log.read_text() + "\ndone training in 4.0 seconds\n")
    assert record.training(read_log(log), log) == {**ended_early, "finished": True}


def test_weights_replace_no_checkpoint_and_no_record(log, capsys):
    last, best = (log.with_name(name) for name in ("last.pt", "best.pt"))
    for checkpoint in (last, best):
        torch.save({"last_optimizer_state": {}}, checkpoint)
    for output in ("last.json", "best.json", "new.pt"):
        options = ("--log", log, "--command", "none", "--output", log.with_name(output))
        assert main(list(map(str, ("record", last, *options)))) == 2
        assert f"{output}: the weights would replace" in capsys.readouterr().err


def test_a_task_may_have_no_folder_of_data():
    cfg = {"task": {"data": None}, "model": {}, "criterion": {}, "common": {"seed": 1}}
    state = {"cfg": cfg, "model": {}, "optimizer_history": [{"num_updates": 1}]}
    require_data(Path("best.pt"), state, None)
    assert weights_alone(state)["cfg"]["task"] == cfg["task"]


@pytest.mark.parametrize("count", [1, 200, 201, 5000])
def test_curves_are_thinned_evenly_between_their_ends(count):
    points = [(i, 0.5) for i in range(count)]
    thinned = record.thinned(points)
    assert len(thinned) == min(count, record.POINTS)
    assert (thinned[0], thinned[-1]) == (points[0], points[-1])
    steps = {b[0] - a[0] for a, b in pairwise(thinned)}
    assert not steps or max(steps) - min(steps) <= 1


def test_the_commit_is_that_of_the_package_alone(tmp_path, monkeypatch):
    package = tmp_path / "package"
    package.mkdir()
    shutil.copy(record.__file__, package / "record.py")
    monkeypatch.setattr(record, "__file__", str(package / "record.py"))
    assert record.commit() is None
    git = ("git", "-c", "user.name=a", "-c", "user.email=a@b.c")
    run(*git, "init", cwd=tmp_path)
    run(*git, "commit", "--allow-empty", "-m", "of somebody else", cwd=tmp_path)
    assert record.commit() is None  # the package is not one of its files
    run(*git, "add", "package", cwd=tmp_path)
    run(*git, "commit", "-m", "of ours", cwd=tmp_path)
    head = run("git", "rev-parse", "HEAD", cwd=tmp_path).stdout.strip()
    assert record.commit() == head
    (package / "record.py").write_text("changed")
    assert record.commit() == f"{head}-dirty"
