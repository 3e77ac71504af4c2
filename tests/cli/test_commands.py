"""The shared behaviour of all commands: help, errors in one line, files, missing packages."""

import json
import os
import re
import subprocess
import sys
from importlib.metadata import requires

import pytest
import torch
from packaging.requirements import Requirement

import kron_plugin
from kron_plugin import restore
from kron_plugin.cli import data, evaluate, main
from kron_plugin.packages import PACKAGES

from ..conftest import PACKAGE
from .test_damaged_files import LOG, STATE

PROGRAMS = {"kron-eval": main, "kron-data": data}
COMMANDS = [(name, command) for name, program in PROGRAMS.items() for command in program.COMMANDS]

# This runs in a process that lacks packages.
WITHOUT = """
import runpy, sys
sys.modules.update(dict.fromkeys({absent}))
sys.argv[0] = {program!r}
runpy.run_module({program!r}, run_name="__main__")
"""
KRON_EVAL, KRON_DATA, BOTH = "kron_plugin.cli.main", "kron_plugin.cli.data", "kron_plugin"
ALL = ["torch", "numpy", "fairseq", *PACKAGES]


def without(absent, program, *args, cwd):
    """Run a program where these packages are not installed."""
    code = WITHOUT.format(absent=absent, program=program)
    command = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Run a program in an empty folder; its exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)

    def run(program, *args):
        try:
            code = PROGRAMS[program].main([str(arg) for arg in args])
        except SystemExit as end:  # of --help and --version
            code = end.code
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


@pytest.fixture
def files(tmp_path):
    """A folder with a checkpoint, a log, an empty file and an empty folder."""
    torch.save(STATE, tmp_path / "model.pt")
    (tmp_path / "train.log").write_bytes(LOG)
    (tmp_path / "empty").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "a.json").write_text("5")
    return tmp_path


def test_help_has_a_line_for_each_command(call):
    for program, module in PROGRAMS.items():
        code, told, _ = call(program, "--help")
        assert code == 0
        for name in module.COMMANDS:
            assert re.search(rf"^    {name} +\S.*\.$", told, re.MULTILINE), told


@pytest.mark.parametrize(("program", "command"), COMMANDS)
def test_help_says_what_is_required(call, program, command):
    _, told, _ = call(program, command, "--help")
    told = " ".join(told.split())
    wrong = call(program, command)[2] if command not in ("list", "report") else ""
    required = re.findall(r"--\w+", wrong.partition("are required: ")[2].partition(";")[0])
    for option in required:
        assert re.search(rf" {option} [A-Z]+ [^()]*\(required\)", told), told
    assert told.count("(required)") == len(required)


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_version(call, program):
    assert call(program, "--version") == (0, f"kron-plugin {kron_plugin.__version__}\n", "")


CURVE = ("--metric", "bits", "--output")
WRONG = [
    ("kron-eval", "", "the following arguments are required: COMMAND; see kron-eval --help"),
    ("kron-eval", "skore", "no command 'skore' and no such file; did you mean 'score'?"),
    ("kron-eval", "recrod x", "no command 'recrod' and no such file; did you mean 'record'?"),
    ("kron-eval", "xyz", "no command 'xyz' and no such file; choose from score, curve, sample"),
    ("kron-eval", "absent.pt", "absent.pt: no such checkpoint"),
    ("kron-eval", "score absent", "absent: no such checkpoint"),
    ("kron-eval", "folder", "folder: is a folder; name a checkpoint in it"),
    ("kron-eval", "empty", "empty: not a readable checkpoint: "),
    ("kron-eval", "train.log", "train.log: not a readable checkpoint: "),
    ("kron-eval", "--json", "the following arguments are required: CHECKPOINT; see kron-eval sc"),
    ("kron-eval", "model.pt --jsn", "unrecognized arguments: --jsn; see kron-eval score --help"),
    ("kron-eval", "model.pt --batch-size 0", "--batch-size=0: must be at least 1"),
    ("kron-eval", "model.pt --batch-size x", "argument --batch-size: invalid int value: 'x'"),
    ("kron-eval", "model.pt --user-dir absent", "--user-dir absent: no such folder"),
    ("kron-eval", "model.pt --output no/x", "--output no/x: there is no folder no"),
    ("kron-eval", "model.pt --output folder", "--output folder: is a folder; name a file in it"),
    ("kron-eval", "model.pt --output model.pt", "--output model.pt: is the checkpoint itself"),
    ("kron-eval", "model.pt --output ./model.pt", "--output model.pt: is the checkpoint itself"),
    ("kron-eval", "model.pt --output /dev/null", "--output /dev/null: is no regular file"),
    ("kron-eval", "curve absent --metric bits --output c.png", "absent: no such log"),
    ("kron-eval", "curve folder --metric bits --output c.png", "folder: is a folder; name a log"),
    ("kron-eval", "curve empty --metric bits --output c.png", "empty: no records; train with"),
    ("kron-eval", "curve train.log --metric nll --output c.png", "--metric nll: not in the log"),
    ("kron-eval", "curve train.log --metric bits --output train.log", "is the log itself"),
    ("kron-eval", "sample model.pt --steps 0", "--steps=0: must be at least 1"),
    ("kron-eval", "sample model.pt --seed -1", "--seed=-1: must be from 0 to 4294967295"),
    ("kron-eval", "sample model.pt --temperature nan", "--temperature=nan: must be above 0"),
    ("kron-eval", "sample model.pt --prompt a.mid --output a.mid", "is the prompt itself"),
    ("kron-eval", "compress absent --factors 2 --output x", "absent: no such checkpoint"),
    ("kron-eval", "export absent --format onnx --output x", "absent: no such checkpoint"),
    ("kron-eval", "export model.pt --format tf --output x", "invalid choice: 'tf' (choose from"),
    ("kron-eval", "export model.pt --format onnx --output model.pt", "is the checkpoint itself"),
    ("kron-eval", "record model.pt --log absent --command x --output x", "absent: no such log"),
    ("kron-eval", "report --results absent", "--results absent: no such folder"),
    ("kron-eval", "report --results folder", "--results folder: no records there; make some"),
    ("kron-eval", "report --results records", "records/a.json: lacks cell, command, "),
    ("kron-data", "lits", "no command 'lits'; did you mean 'list'?"),
    ("kron-data", "--jsn", "the following arguments are required: COMMAND; see kron-data --help"),
    ("kron-data", "prepare mnist --source a --download --dest b", "not allowed with argument"),
    ("kron-data", "prepare mnist --source folder --dest empty/x", "no folder can be made in "),
    ("kron-data", "prepare mnist --source folder --dest records", "records: exists already"),
    ("kron-data", "prepare mnist --source folder --dest new", "gz: no such file; it is publish"),
]


@pytest.mark.parametrize(("program", "line", "message"), WRONG)
def test_what_is_wrong_is_one_line_and_status_2(call, files, program, line, message):
    before = {path: path.read_bytes() for path in files.rglob("*") if path.is_file()}
    code, told, error = call(program, *line.split())
    assert (code, told) == (2, ""), error
    (line,) = error.splitlines()
    assert line.startswith(f"{program}: ")
    assert message in line
    assert {path: path.read_bytes() for path in files.rglob("*") if path.is_file()} == before


def test_a_checkpoint_is_scored_by_its_name_alone_or_after_the_command(call, files, monkeypatch):
    monkeypatch.setattr(restore, "require_known_options", lambda path, state: None)
    monkeypatch.setattr(evaluate, "evaluate", lambda *args: {"examples": args[2:]})
    wanted = {"examples": ["here", "valid", 7, True]}
    options = ("--data", "here", "--split", "valid", "--batch-size", 7, "--cpu", "--json")
    for start in (("model.pt", *options), ("score", "model.pt", *options), (*options, "model.pt")):
        code, told, error = call("kron-eval", *start)
        assert (code, json.loads(told), error) == (0, wanted, "")
    code, told, error = call("kron-eval", "model.pt", *options, "--output", "x.json")
    assert (code, json.loads(told), error) == (0, wanted, "wrote x.json\n")
    assert json.loads((files / "x.json").read_text()) == wanted


def test_a_picture_is_told_on_standard_error(call, files):
    drawn = call("kron-eval", "curve", "train.log", "--metric", "bits", "--output", "c.png")
    assert drawn == (0, "", "wrote c.png\n")


def test_a_reader_that_wants_no_more_is_no_error(tmp_path):
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", KRON_DATA, "list"]
    result = subprocess.run(command, cwd=tmp_path, stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert (result.returncode, result.stderr) == (141, b"")


def test_what_needs_no_package_works_without_any(tmp_path):
    for program, args, code, message in (
        (KRON_EVAL, ["--help"], 0, "kron-eval FILE … is short for kron-eval score FILE …"),
        (KRON_EVAL, ["--version"], 0, kron_plugin.__version__),
        (KRON_EVAL, ["sample", "--help"], 0, "--temperature"),
        (KRON_EVAL, ["skore"], 2, "did you mean 'score'?"),
        (KRON_EVAL, ["curve", "--jsn"], 2, "the following arguments are required"),
        (KRON_DATA, ["--help"], 0, "prepare"),
        (BOTH, ["--help"], 0, "prepare"),
        (BOTH, ["skore"], 2, "python -m kron_plugin: no command 'skore'"),
    ):
        result = without(ALL, program, *args, cwd=tmp_path)
        told = " ".join((result.stdout + result.stderr).split())
        assert (result.returncode, message in told) == (code, True), told


OTHERS = sorted({*ALL} - {"numpy"})


@pytest.mark.parametrize(
    ("absent", "program", "args", "missing"),
    [
        ([m for m in OTHERS if m != "matplotlib"], KRON_EVAL, "curve train.log", None),
        (OTHERS, KRON_DATA, "list", None),
        (["matplotlib"], KRON_EVAL, "curve train.log", "matplotlib"),
        (["tabulate"], KRON_EVAL, "report --results records --output x", "tabulate"),
        (["torch"], KRON_EVAL, "model.pt", "torch"),
        (["fairseq"], KRON_EVAL, "model.pt", "fairseq"),
        (["onnx"], KRON_EVAL, "export model.pt --format onnx --output x.onnx", "onnx"),
        (["onnxscript"], KRON_EVAL, "export model.pt --format onnx --output x.onnx", "onnxscript"),
        (["tqdm"], KRON_DATA, "prepare ptb --source folder --dest x", "tqdm"),
    ],
)
def test_a_missing_package_is_named_by_what_needs_it(files, absent, program, args, missing):
    options = (*CURVE, "c.png") if args.startswith("curve") else ()
    result = without(absent, program, *args.split(), *options, cwd=files)
    if missing is None:
        assert result.returncode == 0, result.stderr
        return
    (line,) = result.stderr.splitlines()
    name = {KRON_EVAL: "kron-eval", KRON_DATA: "kron-data"}[program]
    advice = f"{missing}, which is not installed; pip install {PACKAGES[missing]}"
    assert (result.returncode, line) == (2, f"{name}: needs {advice}")


def test_fairseqs_commands_name_a_missing_package_too(tmp_path):
    start = ("--user-dir", PACKAGE, "--task", "adding", "--arch", "kru")
    result = without(["sentencepiece"], "fairseq_cli.train", *start, cwd=tmp_path)
    advice = "needs sentencepiece, which is not installed; pip install sentencepiece"
    assert result.stderr.splitlines()[-1] == f"fairseq_cli.train: {advice}"
    assert "Traceback" not in result.stderr


def test_the_packages_are_those_of_an_installation():
    named = [Requirement(line) for line in requires("kron-plugin")]
    extras = ("", "export")
    ours = {
        one.name
        for one in named
        if one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in extras)
    }
    assert set(PACKAGES.values()) == ours
