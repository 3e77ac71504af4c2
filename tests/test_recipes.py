"""The recipes, the ledger that lists them, and the records of their runs."""

import contextlib
import json
import os
import pty
import re
import shlex
import socket
import subprocess
import sys
import termios

import pytest
import torch

from kron_plugin.cli.experiments import improvement
from kron_plugin.plugins import tasks

from .conftest import PACKAGE, ROOT, ledger, run, venv

COLUMNS = ["recipe", "profile", "data", "metric"]
RESULTS = ROOT / "recipes" / "results"
OURS = "kron_plugin.tasks."  # modules of our tasks


def command_of(row):
    return ["bash", f"recipes/{row['recipe']}.sh", row["profile"]]


def run_on_terminal(*command, cwd, env):
    """`run`, with a terminal of 120 columns for the output."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(ours, (40, 120))
    with subprocess.Popen(
        command, cwd=cwd, env={**os.environ, **env}, stdout=theirs, stderr=theirs
    ) as process:
        os.close(theirs)
        said = b""
        with contextlib.suppress(OSError):  # the reader's error at the end of a terminal
            while part := os.read(ours, 1 << 16):
                said += part
    os.close(ours)
    shown = said.decode().replace("\r\n", "\n")
    return subprocess.CompletedProcess(command, process.returncode, shown)


def test_every_task_has_a_recipe_with_every_profile():
    ours = {name for name, task in tasks().items() if task.__module__.startswith(OURS)}
    for profile in ("smoke", "quick", "paper"):
        assert sorted(row["recipe"] for row in ledger(profile)) == sorted(ours)
    for row in ledger():
        assert list(row) == COLUMNS
        assert (ROOT / "recipes" / f"{row['recipe']}.sh").is_file()


def test_records_are_of_recipes_in_the_ledger():
    for path in RESULTS.glob("*.json"):
        text = path.read_text(encoding="utf-8")
        run_ = json.loads(text)
        command = shlex.split(run_["command"])
        (row,) = [row for row in ledger() if command_of(row) == command[:3]]
        assert run_["test"]["metrics"][0]["name"] == row["metric"]
        assert run_["task"] == row["recipe"]
        assert not re.search(r"/(root|home|work)/", text)


@pytest.mark.parametrize("row", ledger("smoke"), ids=lambda row: row["recipe"])
def test_smoke_profile_beats_the_trivial_baseline(row, quick_venv, tmp_path):
    """One recipe runs with a user's commands, on a terminal."""
    runs = tmp_path / "runs"
    watch, place = run, quick_venv
    if row["recipe"] == "copy_memory":
        watch, place = run_on_terminal, venv()
    env = {"KRON_RUNS": str(runs), "KRON_VENV": str(place), "OMP_NUM_THREADS": "1"}
    result = watch(*command_of(row), cwd=ROOT, env=env)
    assert result.returncode == 0, result.stdout[-3000:]
    assert result.stdout.count("\n") <= 40, result.stdout
    assert not re.search(r"[{}]|Warning", result.stdout)
    bars = re.findall(r"training: 100%.* 300/300 .*loss .*, bits .*, valid bits ", result.stdout)
    assert bool(bars) == (watch is run_on_terminal), result.stdout
    out = runs / f"{row['recipe']}_smoke"
    record = json.loads((out / "result.json").read_text())
    assert record["command"].split() == command_of(row)
    assert record["training"]["finished"]
    assert record["curve"]["metric"] == row["metric"]
    assert len(record["curve"]["training"]) > 2
    assert record["test"]["metrics"][0]["name"] == row["metric"]
    assert improvement(record) > (1 if tasks()[record["task"]].larger_is_better else 0.3)
    assert (out / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert str(out / "curve.png") in result.stdout
    if row["recipe"] == "music":
        moved = runs.rename(tmp_path / "moved")  # the data are in it
        again = run(*command_of(row), cwd=ROOT, env={**env, "KRON_RUNS": str(moved)})
        assert again.returncode == 0, again.stdout
        assert f"trained already; remove {moved / out.name}" in again.stdout


def test_two_machines_train_one_model(tmp_path):
    """This machine is both; only the first writes. cli/test_interrupts.py starts and interrupts two
    processes of one machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {
        **os.environ,
        "KRON_RUNS": str(tmp_path),
        "KRON_VENV": str(venv()),
        "OMP_NUM_THREADS": "1",
    }
    env.update(KRON_NODES="2", KRON_MASTER=f"127.0.0.1:{port}")
    script = ("bash", "recipes/distributed.sh", "1", "copy_memory", "smoke", "--cpu")
    machines = [
        subprocess.Popen(
            [*script, "--max-update", "4"],
            cwd=ROOT,
            env={**env, "KRON_NODE": str(node)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for node in range(2)
    ]
    said = [machine.communicate(timeout=300)[0] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], said
    (out,) = tmp_path.glob("copy_memory_smoke_*_on_2_workers")
    log = (out / "train.log").read_text()
    assert log.count("training on 2 devices") == log.count('"train_loss"') == 1
    assert '"train_bsz": "64"' in log
    assert str(out / "result.json") in said[0]
    assert str(out / "result.json") not in said[1]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_gpu_for_each_process(tmp_path):
    count = min(2, torch.cuda.device_count())
    result = run(
        *("bash", "recipes/distributed.sh", count, "copy_memory", "smoke", "--max-update", 4),
        cwd=ROOT,
        env={"KRON_RUNS": str(tmp_path), "KRON_VENV": str(venv())},
    )
    assert result.returncode == 0, result.stdout[-3000:]
    (log,) = tmp_path.glob("copy_memory_smoke_*/train.log")
    assert f"training on {count} devices" in log.read_text()


def test_processes_that_trained_models_of_their_own_are_an_error(tmp_path):
    """A false fairseq reports one device; the log of an earlier call is without fault."""
    setup = "cat setup.py constraints.txt recipes/setup.sh | cksum; echo $PWD"
    log = tmp_path / "copy_memory_smoke_on_2_workers" / "train.log"
    log.parent.mkdir()
    log.write_text("training on 2 devices\n")
    programs = tmp_path / "venv" / "bin"
    programs.mkdir(parents=True)
    (programs.parent / ".kron-setup").write_text(run("bash", "-c", setup, cwd=ROOT).stdout)
    for name, does in {
        "python": f'exec "{sys.executable}" "$@"',
        "fairseq-train": f'echo "training on 1 devices" >> "{log}"',
    }.items():
        (programs / name).write_text(f"#!/bin/sh\n{does}\n")
        (programs / name).chmod(0o755)
    result = run(
        *("bash", "recipes/distributed.sh", 2, "copy_memory", "smoke"),
        cwd=ROOT,
        env={"KRON_RUNS": str(tmp_path), "KRON_VENV": str(programs.parent)},
    )
    assert result.returncode == 2, result.stdout
    message = f"2 processes did not train one model together; {log} says 'training on 1 devices"
    assert message in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["copy_memory"], "first the number of processes on this machine, not 'copy_memory'"),
        (["0", "copy_memory"], "first the number of processes on this machine, not '0'"),
        (["2", "copying"], "no recipe 'copying'"),
        (["2", "common"], "no recipe 'common'"),
    ],
)
def test_wrong_calls_of_distributed_end_at_once(arguments, message):
    result = run("bash", "recipes/distributed.sh", *arguments, cwd=ROOT)
    assert result.returncode == 2
    assert message in result.stdout


@pytest.mark.parametrize("limit", ["0", "soon"])
def test_a_wrong_time_limit_of_distributed_ends_at_once(limit):
    limited = {"KRON_TIMEOUT": limit}
    result = run("bash", "recipes/distributed.sh", 2, "copy_memory", cwd=ROOT, env=limited)
    assert result.returncode == 2
    assert f"KRON_TIMEOUT={limit}: must be whole seconds above 0" in result.stdout


def test_help_is_of_the_recipe():
    result = run("bash", "recipes/music.sh", "--help", cwd=ROOT)
    assert result.returncode == 0
    first, *_, last = result.stdout.splitlines()
    assert first.startswith("Polyphonic music: which keys sound next")
    assert last == "settings that were best for each."


@pytest.mark.parametrize(
    ("recipe", "arguments", "message"),
    [
        ("music", ["fast"], "music: unknown profile 'fast'; choose smoke, quick or paper"),
        ("music", [], "music: no '*.pickle' in"),
        ("pixel_mnist", ["quick"], "pixel_mnist: no 'train-images-idx3-ubyte*' in"),
    ],
)
def test_wrong_calls_end_at_once(recipe, arguments, message, tmp_path):
    env = {
        "KRON_DATA": str(tmp_path),
        "KRON_VENV": str(venv()),
        "KRON_RUNS": str(tmp_path / "runs"),
    }
    result = run("bash", f"recipes/{recipe}.sh", *arguments, cwd=ROOT, env=env)
    assert result.returncode == 2
    assert message in result.stdout
    assert "Traceback" not in result.stdout


def test_the_sample_config_trains_with_hydra(kron_eval, tmp_path):
    trained = run(
        *(sys.executable, "-m", "fairseq_cli.hydra_train", "--config-dir", ROOT / "recipes/config"),
        *("--config-name", "copy_memory", f"common.user_dir={PACKAGE}"),
        *("common.cpu=true", "optimization.max_update=60"),
        cwd=tmp_path,
    )
    assert trained.returncode == 0, trained.stdout[-3000:]
    checkpoint = tmp_path / "runs" / "copy_memory_hydra" / "checkpoints" / "checkpoint_last.pt"
    scored = json.loads(kron_eval(checkpoint, "--json", "--cpu").stdout)
    assert scored["updates"] == 60
    assert scored["metrics"][0]["value"] < scored["baseline"]["value"] / 2
