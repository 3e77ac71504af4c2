"""Damaged checkpoints, logs and archives give an error that names them."""

import gzip
import io
import resource
import tarfile
from itertools import cycle
from zipfile import ZIP_DEFLATED, ZipFile

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kron_plugin.cli.curve import read_log
from kron_plugin.cli.datasets import DATASETS
from kron_plugin.cli.main import main
from kron_plugin.cli.pictures import draw_log
from kron_plugin.restore import ARCHITECTURES, read

from ..fuzz import OTHERS, altered, damaged, ends_well, fuzzed, places, swollen
from .conftest import archive

HISTORY = {"criterion_name": "", "optimizer_name": "", "lr_scheduler_state": {}, "num_updates": 1}
STATE = {
    "cfg": {"model": {"_name": "kru"}, "task": {"_name": "adding"}},
    "model": {"cell.h0": torch.arange(4.0)},
    "optimizer_history": [HISTORY],
    "extra_state": {"val_loss": None},
}
LOG = b"""2026-01-01 | INFO | a line of text
{"loss": "1.5", "bits": "1.25", "num_updates": "3", "baseline": "2"}
{"valid_bits": 0.5, "valid_num_updates": 3}
"""


def test_the_checkpoint_to_be_damaged_is_good(tmp_path):
    torch.save(STATE, tmp_path / "model.pt")
    assert str(read(tmp_path / "model.pt")) == str(STATE)


def saved(state, zipped=True):
    file = io.BytesIO()
    torch.save(state, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


@pytest.mark.parametrize("zipped", [True, False])
def test_checkpoints(tmp_path, zipped):
    path = tmp_path / "model.pt"

    @fuzzed
    @given(damaged(saved(STATE, zipped)))
    def check(content):
        path.write_bytes(content)
        state = ends_well(read, path, says=path)
        if state is not None and zipped:  # torch's older format has no checksums
            assert str(state) == str(STATE)
        elif state is not None:
            assert state["cfg"]["model"]["_name"] in ARCHITECTURES

    check()


WORDS = st.sampled_from(["cfg", "model", "task", "_name", "kru", "adding", ""])
ANYTHING = st.recursive(
    st.none() | st.integers() | WORDS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=6,
)


@fuzzed
@given(ANYTHING | st.fixed_dictionaries({"cfg": ANYTHING, "model": ANYTHING}))
@example({key: value for key, value in STATE.items() if key != "optimizer_history"})
@example({"cfg": {"model": {"_name": []}, "task": {}}, "model": 1})
@example({"cfg": [1], "model": 1})
def test_checkpoints_that_hold_something_else(tmp_path, state):
    path = tmp_path / "model.pt"
    torch.save(state, path)
    ends_well(read, path, says=path)


@settings(fuzzed, max_examples=10)  # pictures take time
@given(damaged(LOG) | st.binary(max_size=20) | st.text(max_size=20).map(str.encode))
@example(b'{"bits": ' + b"9" * 400 + b', "num_updates": 1}\n')
@example(b'{"bits": ' + b"9" * 5000 + b', "num_updates": 1}\n')
@example(b"[" * 100_000 + b'\n{"bits": 1, "num_updates": 1}')
@example(b'{"bits": NaN, "num_updates": Infinity}\n')
@example(b"\xff\n")
def test_logs(tmp_path, content):
    path, picture = tmp_path / "train.log", tmp_path / "curve.png"
    path.write_bytes(content)
    picture.unlink(missing_ok=True)
    records = ends_well(read_log, path, says=path)
    if records is not None:
        ends_well(draw_log, records, "bits", "", picture, says="bits")
        assert [p.name for p in tmp_path.iterdir() if ".part" in p.name] == []


def test_archives(tmp_path):
    path = tmp_path / "nottingham_midi.tar.gz"
    known = DATASETS["nottingham-midi"]

    unpacked = gzip.decompress(archive())

    @fuzzed
    @given(damaged(archive()) | (damaged(unpacked) | swollen(unpacked)).map(gzip.compress))
    @example(gzip.compress(extended(b"1" * (200 << 10)) + unpacked))
    @example(gzip.compress(extended(b"11 GNU.sparse.map=" + b"1," * 50_000) + unpacked))
    @example(gzip.compress(sized(-512) + unpacked))
    @example(gzip.compress(sized(1 << 60) + unpacked))
    def check(content):
        path.write_bytes(content)
        ends_well(known.checksum, path, says=path)

    check()


def extended(content):
    """The extension of a member's header."""
    member = tarfile.TarInfo("more")
    member.type, member.size = tarfile.XHDTYPE, len(content)
    return member.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % 512)


def sized(size):
    """A member's header that states a size."""
    member = tarfile.TarInfo("song.mid")
    member.size = size
    return member.tobuf(tarfile.GNU_FORMAT)


TRAIN = (
    *("--task", "copy_memory", "--delay", 3, "--copy-length", 2, "--train-examples", 8),
    *("--eval-examples", 4, "--arch", "kru", "--cell", "lstm", "--hidden-size", 4),
    *("--criterion", "soft_unitary", "--optimizer", "kron_adam", "--lr", 0.01),
    *("--max-update", 2, "--batch-size", 4),
)
# The model's options have different types; the other options are alike.
OPTIONS = (None, "_name", "cell", "hidden_size", "num_layers", "dropout", "kron_factors")
SAID = (None, "seed", "cpu")


def is_evaluated(part, section, option, *_):
    if part == "cfg" and section is not None:
        return section in ("task", "criterion") or (section == "model" and option in OPTIONS)
    return section is None or part in ("model", "optimizer_history")


@pytest.fixture
def checkpoint(train):
    return train(*TRAIN) / "checkpoint_last.pt"


def test_checkpoints_with_one_value_altered(checkpoint, capsys):
    """A key is left out, or a value is replaced by one of another type."""
    state = torch.load(checkpoint, weights_only=True)
    path, new = checkpoint.with_name("altered.pt"), str(checkpoint.with_name("new"))
    compress = ("compress", path, "--factors", "2,2", "--output", new)
    log = ("--log", checkpoint.parent.parent / "train.log", "--command", "train")
    evaluate = (path, "--cpu")
    record = ("record", path, *log, "--output", new, "--cpu")

    def ends_well(command):
        code = main([str(argument) for argument in command])
        *_, last = ["", *capsys.readouterr().err.splitlines()]
        assert code in (0, 2), (place, value)
        assert code == 0 or last.startswith((f"kron-eval: {path}: ", "kron-eval: --")), last

    used = {
        compress: lambda part, *_: part == "model",
        evaluate: is_evaluated,
        record: lambda part, section, option, *_: part == "cfg" and section and option in SAID,
    }
    values = cycle(OTHERS)
    for place in places(state):
        commands = [command for command, looks in used.items() if looks(*place, None, None)]
        value = next(values) if commands else None
        if commands:
            torch.save(altered(state, place, value), path)
        for command in commands:
            ends_well(command)


CLAIMS = [
    (("model", "hidden_size"), 2**26, "trained with another "),
    (("model", "num_layers"), 1000, "trained with another --num-layers"),
    (("model", "kron_factors"), ",".join(["1"] * 20_000 + ["4"]), "more than 64 make no sense"),
    (("task", "symbols"), 2**21, "trained with another "),
    (("task", "delay"), 2**26, "--delay="),
    (("task", "copy_length"), 2**26, "--copy-length="),
    (("task", "eval_examples"), 2**26, "--eval-examples="),
]


def test_checkpoints_that_claim_too_much(train, capsys):
    """They are refused before anything of the claimed size is made."""
    path = train(*TRAIN, "--cell", "kru") / "checkpoint_last.pt"
    state = torch.load(path, weights_only=True)
    assert main([str(path), "--cpu"]) == 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for option, value, says in CLAIMS:
        torch.save(altered(state, ("cfg", *option), value), path)
        assert main([str(path), "--cpu"]) == 2
        assert says in capsys.readouterr().err.splitlines()[-1]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


def test_a_batch_that_does_not_fit_is_refused(checkpoint, monkeypatch, capsys):
    monkeypatch.setattr("kron_plugin.cli.evaluate.machine_memory", lambda: 400)
    assert main([str(checkpoint), "--cpu"]) == 2
    assert "--batch-size: 4 sequences of 7 steps take 4.5e+02" in capsys.readouterr().err


def test_parameters_that_repeat_one_number(checkpoint, capsys):
    """A storage of four bytes can have shapes of gigabytes."""
    state = torch.load(checkpoint, weights_only=True)
    state["model"] = {name: torch.zeros(1).expand(w.shape) for name, w in state["model"].items()}
    torch.save(state, checkpoint)
    assert main([str(checkpoint), "--cpu"]) == 2
    assert "several parameters share one small block" in capsys.readouterr().err


def test_compressed_checkpoints(tmp_path):
    """The archive's table of contents is enough to refuse them, without unpacking."""
    path = tmp_path / "model.pt"
    plain = ZipFile(io.BytesIO(saved({**STATE, "model": {"w": torch.zeros(1 << 24)}})))
    with ZipFile(path, "w", ZIP_DEFLATED, compresslevel=1) as packed:
        for part in plain.infolist():
            packed.writestr(part.filename, plain.read(part))
    assert path.stat().st_size < 1 << 20
    with pytest.raises(ValueError, match=r"model\.pt: not a readable checkpoint: compressed"):
        read(path)
