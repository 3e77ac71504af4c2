"""Ctrl-C: a short message, status 130, and no file under its name before it is whole."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import kron_plugin

kron_plugin.register()

from kron_plugin import restore  # noqa: E402
from kron_plugin.checkpoints import is_damaged  # noqa: E402
from kron_plugin.cli import data, evaluate, main  # noqa: E402
from kron_plugin.files import atomic_write  # noqa: E402
from kron_plugin.saving import LOCK  # noqa: E402
from kron_plugin.tasks.midi import write_midi  # noqa: E402

from ..conftest import ROOT, venv  # noqa: E402


@pytest.fixture
def interrupted_at_the_end(monkeypatch):
    """Ctrl-C arrives at the last moment: everything is written, but not yet under its name."""

    def replace(origin, target):
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(os, "replace", replace)


def made(folder):
    """The files in a folder, without those of the tests."""
    names = {path.name for path in folder.rglob("*") if path.is_file()}
    return sorted(n for n in names if not n.startswith(("ptb.", "train-", "t10k-", "log")))


def test_a_file_that_is_not_whole_has_no_name(tmp_path, interrupted_at_the_end):
    with pytest.raises(KeyboardInterrupt), atomic_write(tmp_path / "a") as unfinished:
        unfinished.write_text("half")
    with pytest.raises(KeyboardInterrupt):
        write_midi(np.eye(88, dtype=np.uint8), 2, tmp_path / "a.mid")
    assert made(tmp_path) == []


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    done, replace = [], os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: done.append("on the disk"))
    monkeypatch.setattr(os, "replace", lambda *args: (done.append("named"), replace(*args)))
    with atomic_write(tmp_path / "a") as unfinished:
        unfinished.write_text("whole")
    assert done == ["on the disk", "named"]


def test_kron_eval(tmp_path, monkeypatch, capsys, interrupted_at_the_end):
    state = {"cfg": {"task": {"_name": "adding"}}}
    monkeypatch.setattr(restore, "read", lambda path: state)
    monkeypatch.setattr(restore, "require_known_options", lambda path, state: None)
    monkeypatch.setattr(evaluate, "evaluate", lambda *args: {"examples": 1})
    log, model = tmp_path / "log", tmp_path / "log.pt"
    model.touch()
    log.write_text('{"bits": 1, "num_updates": 1}\n')
    for command in (
        (model, "--output", tmp_path / "result.json"),
        ("curve", log, "--metric", "bits", "--output", tmp_path / "curve.png"),
    ):
        assert main.main([str(part) for part in command]) == 130
        assert capsys.readouterr() == ("", "kron-eval: interrupted\n")
    assert made(tmp_path) == []


@pytest.mark.parametrize("origin", ["--source", "--download"])
@pytest.mark.parametrize("name", ["ptb", "mnist", "nottingham-midi"])
def test_kron_data(tmp_path, capsys, monkeypatch, site, name, origin):
    """Ctrl-C arrives at each moment at which a file or folder gets its name."""
    replace, moments = os.replace, 0
    where = (origin, str(site.folder)) if origin == "--source" else (origin, "--mirror", site.url)
    code = None

    def interrupted(origin, target):
        if counted.append(target) or len(counted) == moments:
            signal.raise_signal(signal.SIGINT)
        replace(origin, target)

    monkeypatch.setattr(os, "replace", interrupted)
    while code != 0:
        counted, moments = [], moments + 1
        code = data.main(["prepare", name, *where, "--dest", str(tmp_path / "out")])
        if code != 0:
            assert code == 130
            assert capsys.readouterr().err.splitlines()[-1] == "kron-data: interrupted"
            assert not (tmp_path / "out").exists()
        expected = {"source", "cache", "out", f".out.{name}.download"}
        assert {p.name for p in tmp_path.iterdir()} <= expected
    assert moments > 1


def start(*command, cwd, env=None):
    """A command in its own process group, as on a terminal."""
    return subprocess.Popen(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def interrupt(process):
    os.killpg(process.pid, signal.SIGINT)
    try:
        printed, _ = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130, printed[-2000:]
    assert "Traceback" not in printed
    return printed.splitlines()


def test_while_fairseq_is_imported(tmp_path):
    command = ("kron_plugin.cli.main", "checkpoint_best.pt")
    (tmp_path / command[1]).touch()
    process = start(sys.executable, "-v", "-m", *command, cwd=tmp_path)
    for line in process.stdout:  # names the imported modules
        if line.startswith("import 'torch"):
            break
    assert "kron-eval: interrupted" in interrupt(process)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_recipe(tmp_path, workers):
    script, end = ("recipes/copy_memory.sh",), ("smoke", "--max-update", "1000000")
    if workers > 1:
        script, end = ("recipes/distributed.sh", workers, "copy_memory"), (*end, "--cpu")
    env = {"KRON_RUNS": str(tmp_path / "runs"), "KRON_VENV": str(venv())}
    process = start("bash", *script, *end, cwd=ROOT, env=env)
    logs = tmp_path.glob("runs/*/train.log")
    while process.poll() is None and not any("num_updates" in log.read_text() for log in logs):
        time.sleep(0.1)
        logs = tmp_path.glob("runs/*/train.log")
    assert interrupt(process)[-1] == "copy_memory: interrupted"
    (out,) = (tmp_path / "runs").iterdir()
    assert (workers == 1) != ("training on 2 devices" in (out / "train.log").read_text())
    assert {path.suffix for path in out.iterdir() if path.name != LOCK} <= {".log", ".pt"}
    assert not any(is_damaged(path) for path in out.glob("*.pt"))
