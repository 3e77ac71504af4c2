"""fairseq's commands and ours load checkpoints as data."""

import argparse
import os
import pickle
import re
import sys

import numpy
import pytest
import torch
from fairseq.data import Dictionary

import kron_plugin
from kron_plugin import checkpoints, files, saving
from kron_plugin.arrays import STAND_INS

from .conftest import PACKAGE, run
from .fuzz import altered

TASK = ("--task", "copy_memory", "--delay", "5", "--train-examples", "8", "--eval-examples", "4")
TRAIN = (
    *("fairseq_cli.train", *TASK, "--arch", "kru", "--hidden-size", "8", "--batch-size", "4"),
    *("--criterion", "soft_unitary", "--optimizer", "sgd", "--lr", "0.1"),
    *("--save-dir", "run", "--no-epoch-checkpoints", "--num-workers", "0", "--cpu"),
)
EVALUATE = (*TASK, "--path", "run/checkpoint_last.pt", "--batch-size", "4", "--cpu")

# Several of fairseq's commands share a process, because its start takes five seconds.
SESSION = """
import importlib, pathlib, sys, torch

def command(module, *args):
    sys.argv = [module, *args, "--user-dir", USER_DIR]
    try:
        importlib.import_module(module).cli_main()
        print("DONE", module)
    except ValueError as error:
        print("REFUSED", module, error)

command(*TRAIN, "--max-epoch", "1")
path = pathlib.Path("run/checkpoint_last.pt")
state = torch.load(path, weights_only=True)
print("UPDATES", state["optimizer_history"][-1]["num_updates"])
command(*TRAIN, "--max-epoch", "2")
state = torch.load(path, weights_only=True)
print("UPDATES", state["optimizer_history"][-1]["num_updates"])

class Bomb:
    def __reduce__(self):
        return pathlib.Path.touch, (pathlib.Path("ran"),)

torch.save({**state, "bomb": Bomb()}, path)
for module in ("validate", "generate", "eval_lm"):
    command(f"fairseq_cli.{module}", *EVALUATE)
from kron_plugin.cli.main import main
print("KRON-EVAL", main([str(path)]))
sys.argv = [*TRAIN, "--max-epoch", "3", "--user-dir", USER_DIR]
importlib.import_module(TRAIN[0]).cli_main()
"""


def test_no_command_runs_what_is_in_a_checkpoint(tmp_path):
    """Not even if the environment asks for it. fairseq's own checkpoints are loaded."""
    values = f"TRAIN, EVALUATE, USER_DIR = {TRAIN}, {EVALUATE}, {str(PACKAGE)!r}\n"
    env = {"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}
    result = run(sys.executable, "-c", values + SESSION, cwd=tmp_path, env=env)
    printed = result.stdout
    assert not (tmp_path / "ran").exists()
    assert re.findall(r"UPDATES (\d+)", printed) == ["2", "4"], printed[-3000:]
    refused = re.findall(
        r"REFUSED (\S+) run/checkpoint_last.pt: not a readable checkpoint", printed
    )
    assert refused == [f"fairseq_cli.{name}" for name in ("validate", "generate", "eval_lm")]
    assert "KRON-EVAL 2" in printed
    last = printed.strip().splitlines()[-1]
    assert last.startswith("fairseq_cli.train: run/checkpoint_last.pt: not a readable checkpoint")
    assert "which could run code" in last
    assert "Traceback" not in printed
    assert result.returncode == 1


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("ran",)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("content", [Bomb(), {"model": {}, "cfg": Bomb()}, [Bomb]])
def test_code_is_refused_by_name(tmp_path, monkeypatch, content, zipped):
    monkeypatch.chdir(tmp_path)
    torch.save(content, "model.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"^model\.pt: .* refers to .*, which could run code"):
        checkpoints.load("model.pt")
    assert not (tmp_path / "ran").exists()


def test_a_bare_pickle_and_a_compiled_program_are_refused(tmp_path):
    path = tmp_path / "model.pt"
    path.write_bytes(pickle.dumps({"cfg": Bomb()}))
    with pytest.raises(ValueError, match=r"model\.pt: not a readable checkpoint"):
        checkpoints.load(path)
    torch.jit.script(torch.nn.Identity()).save(path)
    with pytest.raises(ValueError, match=r"model\.pt: not a readable checkpoint: .* TorchScript"):
        checkpoints.load(path)


def test_namespaces_and_numbers_are_all_that_is_admitted_beyond_torch(tmp_path):
    before = set(torch.serialization.get_safe_globals())
    options = argparse.Namespace(lr=[0.1])
    torch.save({"args": options}, tmp_path / "model.pt")
    assert checkpoints.load(tmp_path / "model.pt") == {"args": options}
    admitted = set(torch.serialization.get_safe_globals())
    assert admitted <= before | {argparse.Namespace, *STAND_INS}
    assert not any(part in admitted for part in (numpy.ndarray, numpy.dtype))


@pytest.mark.parametrize(
    "value",
    [
        numpy.arange(4),
        numpy.arange(6.0).reshape(2, 3).T,
        numpy.array(3.5, dtype=">f4"),
        numpy.zeros((0, 3), dtype=bool),
        numpy.array([1 + 2j]),
        numpy.float64(1.25),
        numpy.int16(-7),
        numpy.bool_(True),
    ],
    ids=repr,
)
def test_numbers_of_numpy_come_back_and_are_saved_again(tmp_path, value):
    loaded = value
    for _ in range(2):
        torch.save({"first": loaded, "second": loaded}, tmp_path / "model.pt")
        _, loaded = checkpoints.load(tmp_path / "model.pt").values()
        assert isinstance(loaded, type(value))
        assert (loaded.dtype, loaded.shape) == (value.dtype.newbyteorder("="), value.shape)
        assert numpy.array_equal(loaded, value)


class Claim:
    """Its pickle calls a function with arguments and sets a state."""

    def __init__(self, function, *args, state=None):
        self.parts = (function, args, state)

    def __reduce__(self):
        return self.parts


_reconstruct = numpy.zeros(1).__reduce__()[0]
# A dtype of objects that claims to hold none, as no honest one does. It would make eight bytes the
# address of an object.
NO_OBJECTS = Claim(numpy.dtype, "O8", False, True, state=(3, "|", None, None, None, -1, -1, 0))


@pytest.mark.parametrize(
    "content",
    [
        numpy.array([{"a": 1}], dtype=object),
        numpy.array([Bomb()], dtype=object),
        numpy.array(["text"]),
        numpy.zeros(2, dtype=[("a", "i4"), ("b", "O")]),
        Claim(
            _reconstruct, numpy.ndarray, (0,), b"b", state=(1, (1,), NO_OBJECTS, False, b"8" * 8)
        ),
        Claim(
            _reconstruct,
            numpy.ndarray,
            (0,),
            b"b",
            state=(1, (9,), Claim(numpy.dtype, "f8"), False, b"8"),
        ),
        Claim(numpy.ndarray, (1,), "O", bytearray(8)),
        Claim(numpy.dtype, [("a", "O")]),
        Claim(bytes, 2**40),
    ],
)
def test_arrays_of_anything_but_numbers_are_refused(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    torch.save({"sum": content}, "model.pt")
    with pytest.raises(ValueError, match=r"^model\.pt: not a readable checkpoint"):
        checkpoints.load("model.pt")
    assert not (tmp_path / "ran").exists()


@pytest.fixture
def texts(forked, tmp_path):
    """A few lines and the same lines backwards, in the form of fairseq-preprocess."""
    words = ["a b c d e", "b c d e f", "f e d c b a", "c a f e b"]
    for split in ("train", "valid", "test"):
        for side, step in (("src", 1), ("tgt", -1)):
            (tmp_path / f"{split}.{side}").write_text("".join(f"{w[::step]}\n" for w in words))
    prefixes = [part for split in ("train", "valid", "test") for part in (f"--{split}pref", split)]
    sides = ("-s", "src", "-t", "tgt", "--joined-dictionary")
    result = forked("fairseq_cli.preprocess", *prefixes, *sides, "--destdir", "data")
    assert result.returncode == 0, result.stdout[-3000:]
    return tmp_path / "data"


@pytest.mark.parametrize("arch", ["lstm", "kru"])
def test_a_run_that_logs_arrays_can_be_resumed_and_used(arch, texts, train, forked):
    sizes = ("--hidden-size", 8) if arch == "kru" else ("--encoder-embed-dim", 8)
    args = (
        *(texts, "--arch", arch, *sizes, "--optimizer", "adam", "--lr", 0.01, "--batch-size", 4),
        *("--eval-bleu", "--eval-bleu-detok", "space", "--best-checkpoint-metric", "bleu"),
        *("--maximize-best-checkpoint-metric", "--required-batch-size-multiple", 1),
    )
    for epochs in (1, 2):
        path = train(*args, "--max-epoch", epochs) / "checkpoint_last.pt"
        state = checkpoints.load(path)
        assert state["optimizer_history"][-1]["num_updates"] == epochs
        meters = {name: meter for _, name, _, meter in state["extra_state"]["metrics"]["valid"]}
        assert isinstance(meters["_bleu_totals"]["sum"], numpy.ndarray)
    options = ("--required-batch-size-multiple", 1, "--user-dir", PACKAGE, "--cpu")
    used = forked("fairseq_cli.generate", texts, "--path", path, *options)
    assert used.returncode == 0, used.stdout[-3000:]


def test_what_would_not_load_is_not_saved(tmp_path):
    path = tmp_path / "model.pt"
    saving.save({"model": 1}, path)
    with pytest.raises(ValueError, match=r"it would not load: .* refers to pathlib.*Path"):
        saving.save({"model": 2, "task_state": {"folder": tmp_path}}, path)
    assert checkpoints.load(path) == {"model": 1}
    assert {p.name for p in tmp_path.iterdir()} == {"model.pt", "model.unloadable.pt"}


def test_dictionaries_in_the_state_of_a_task(tmp_path):
    """fairseq's speech tasks keep dictionaries in their state."""
    dictionary = Dictionary()
    dictionary.add_symbol("word")
    kron_plugin.register()
    saving.save({"task_state": {"dictionaries": [dictionary]}}, tmp_path / "model.pt")
    (loaded,) = checkpoints.load(tmp_path / "model.pt")["task_state"]["dictionaries"]
    assert loaded == dictionary


def test_unfinished_files_of_dead_processes_are_removed(tmp_path):
    """Files of living processes are kept, for any process number and machine."""
    dead = tmp_path / f".model.pt.{os.getpid()}.1.part"
    dead.write_bytes(b"half")
    with files.atomic_write(tmp_path / "slow.pt") as slow:
        assert not dead.exists()
        slow.write_bytes(b"slow")
        with files.atomic_write(tmp_path / "quick.pt") as quick:
            quick.write_bytes(b"quick")
        assert slow.exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["quick.pt", "slow.pt"]


def test_altered_checkpoints_are_not_resumed(train_on, tmp_path):
    """One line names the file and says what is wrong with it."""
    out = tmp_path / "run"
    args = (*TRAIN[1:-6], "--max-update", 4)
    path = train_on(out, *args, "--max-update", 2) / "checkpoint_last.pt"
    state = checkpoints.load(path)
    name = next(iter(state["model"]))
    for place in (
        *(("model", name), ("optimizer_history",), ("task_state",), ("extra_state", "metrics")),
        ("last_optimizer_state", "param_groups"),
    ):
        torch.save(altered(state, place, 5), path)
        (out / "output_0").unlink()
        train_on(out, *args, expect=1)
        printed = (out / "output_0").read_text()
        assert "Traceback" not in printed
        assert f"{path}: not a readable checkpoint: " in printed.splitlines()[-1]
