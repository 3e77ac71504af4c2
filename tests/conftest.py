import csv
import json
import os
import pickle
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

import kron_plugin

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # the workers share the cores

# Background jobs of a shell ignore Ctrl-C, and so would the processes that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).parent.parent
PACKAGE = Path(kron_plugin.__file__).parent  # in ROOT, or where it is installed


def ledger(profile=None):
    """The rows of the recipes' ledger; a profile has one row for each task."""
    with open(ROOT / "recipes" / "ledger.csv", newline="", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if profile in (None, row["profile"])]


def run(*command, cwd, env=None, stdin=None):
    """Run a command from another folder than the checkout; its output, both streams, as text."""
    return subprocess.run(
        [str(c) for c in command],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
        input=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="session")
def listener():
    """A socket that takes requests for commands, as soon as it exists."""
    # It is outside pytest's folders, because a socket's name must be short.
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as made:
        made.bind(f"{folder}/socket")
        made.listen()
        yield made


@pytest.fixture(scope="session")
def server(listener):
    """The process that commands are forked from (forked.py)."""
    process = subprocess.Popen(
        [sys.executable, Path(__file__).with_name("forked.py"), str(listener.fileno())],
        pass_fds=[listener.fileno()],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        yield process
        process.stdin.close()


@pytest.fixture(scope="session")
def quick_venv(server, listener, tmp_path_factory):
    """A copy of the present environment for recipes; its commands are forked."""
    folder = tmp_path_factory.mktemp("venv")
    (folder / "bin").mkdir()
    commands = {"fairseq-train": "fairseq_cli.train", "kron-eval": "kron_plugin.cli.main"}
    asking = [sys.executable, "-IS", Path(__file__).with_name("ask.py"), listener.getsockname()]
    called = {name: [*asking, module] for name, module in commands.items()}
    for name, words in {**called, "python": [sys.executable]}.items():
        script = folder / "bin" / name
        script.write_text(f'#!/bin/sh\nexec {shlex.join(map(str, words))} "$@"\n')
        script.chmod(0o755)
    for stamp in venv().glob(".kron-setup*"):
        shutil.copy(stamp, folder)
    return folder


def venv():
    """The present environment."""
    return Path(os.environ.get("KRON_VENV", Path(sys.executable).parent.parent))


@pytest.fixture(scope="session")
def forked_in(server):
    """Run a module's command in a folder as `run` does, without its start-up."""

    def call(cwd, module, *args, env=None):
        args = [str(a) for a in args]
        with tempfile.NamedTemporaryFile("r", suffix=".txt") as output:
            command = {"module": module, "args": args, "cwd": str(cwd), "env": env or {}}
            command["output"] = output.name
            print(json.dumps([command]), file=server.stdin, flush=True)
            (status,) = json.loads(server.stdout.readline())
            return subprocess.CompletedProcess([module, *args], status, output.read())

    return call


@pytest.fixture
def forked(forked_in, tmp_path):
    """The same in the test's folder."""

    def call(module, *args, cwd=tmp_path, env=None):
        return forked_in(cwd, module, *args, env=env)

    return call


@pytest.fixture
def train(forked, tmp_path):
    """Run fairseq-train with the plugin; return the folder of its checkpoints and log."""

    def call(*args, user_dir=PACKAGE, expect=0):
        out = tmp_path / "run"
        result = forked(
            *("fairseq_cli.train", *args, "--user-dir", user_dir, "--cpu"),
            *("--save-dir", out, "--num-workers", 0, "--no-epoch-checkpoints", "--seed", 1),
            *("--log-format", "json", "--log-file", f"../{tmp_path.name}/train.log"),
        )
        assert (result.returncode == 0) == (expect == 0), result.stdout[-3000:]
        return out if expect == 0 else result.stdout

    return call


@pytest.fixture(scope="session")
def train_on(server):
    """Run fairseq-train into a folder, on `workers` workers; return the folder.

    `kill` is the name of a function and the number of the call that kills the run. `stop` and
    `fail` are the same for the last worker alone, which stops or raises an error. `limit` is the
    number of bytes that a file may have.
    """

    def call(
        out, *args, workers=1, kill=None, stop=None, fail=None, limit=None, expect=0, env=None
    ):
        out.mkdir(exist_ok=True)
        (out / "meeting").unlink(missing_ok=True)
        args = [
            *(*args, "--user-dir", PACKAGE, "--cpu", "--save-dir", out, "--seed", 1),
            *("--num-workers", 0, "--no-epoch-checkpoints", "--log-format", "json"),
            *("--log-file", out / "train.log"),
        ]
        if workers > 1:
            args += [
                *("--distributed-world-size", workers, "--distributed-no-spawn"),
                *("--distributed-init-method", f"file://{out / 'meeting'}"),
                *("--distributed-backend", "gloo", "--ddp-backend", "legacy_ddp"),
                "--load-checkpoint-on-all-dp-ranks",
            ]
        ends = [("kill", *kill) if kill else ()] * workers
        if stop or fail:
            ends[-1] = ("stop", *stop) if stop else ("fail", *fail)
        before = [limit] if limit else []
        commands = [
            {
                "module": "killed" if end else "limited" if limit else "fairseq_cli.train",
                "args": [str(a) for a in [*end, *before, *args, "--distributed-rank", rank]],
                "cwd": str(out),
                "env": env or {},
                "output": str(out / f"output_{rank}"),
            }
            for rank, end in enumerate(ends)
        ]
        print(json.dumps(commands), file=server.stdin, flush=True)
        statuses = json.loads(server.stdout.readline())
        output = (out / "output_0").read_text()
        expected = [-9 if end and end[0] != "fail" else expect for end in ends]
        assert statuses == expected, output[-3000:]
        return out

    return call


@pytest.fixture
def kron_eval(forked):
    """Run kron-eval from another folder; return the finished process."""

    def call(*args):
        return forked("kron_plugin.cli.main", *args)

    return call


@pytest.fixture
def rolls_pickle(tmp_path):
    """A small set of piano rolls in the format of Boulanger-Lewandowski: a rising scale of thirds
    in different keys, so that the next step follows from the last."""

    def sequence(key, steps):
        return [(key + t % 12, key + 4 + t % 12) for t in range(steps)]

    data = {
        "train": [sequence(40 + i % 8, 20 + i) for i in range(24)],
        "valid": [sequence(40 + i, 15) for i in range(5)],
        "test": [sequence(40 + i, 12 + i) for i in range(7)],
    }
    path = tmp_path / "scales.pickle"
    path.write_bytes(pickle.dumps(data))
    return path


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
