"""The benchmarks run, with next to no work; the times that they measure here mean nothing."""

import json
import shutil
import sys

import exported
import floors
import peers
import pytest
import recurrence
import scaling
import torch

from kron_plugin.modules import KRU, KRULSTM

from .conftest import ROOT, run

# A million units take seconds even so.
ROWS = {row.name: row for row in recurrence.ROWS if row.name != "million-units"}
COPY = ("--task", "copy_memory", "--delay", 5, "--train-examples", 320, "--eval-examples", 60)
MUSIC = ("--task", "music")
TRAIN = (
    *("--arch", "kru", "--hidden-size", 16, "--criterion", "soft_unitary", "--max-update", 10),
    *("--optimizer", "kron_adam", "--lr", "1e-2", "--batch-size", 8),
)
LIBRARIES = {"linear_operator(512)", "pyfastkron(512)"}  # they need not be installed


@pytest.mark.parametrize("name", ROWS)
def test_every_row(name):
    row = ROWS[name]
    records = recurrence.measure(peers.tiny(row), rounds=1)
    names = {candidate.name for candidate in row.candidates}
    for direction in ("forward",) if row.form == "step" else recurrence.DIRECTIONS:
        ms = {each["what"]: each["ms"] for each in records if each["direction"] == direction}
        assert names - LIBRARIES <= ms.keys() <= names
        for each in records:
            if each["direction"] == direction and each["floors"]:
                assert 0 < each["share"] < 1
                assert each["times"].keys() & LIBRARIES == ms.keys() & LIBRARIES
                for peer, times in each["times"].items():
                    assert times == pytest.approx(ms[peer] / each["ms"])
    goals = row.goals.items()
    assert {peer for ours, over in goals for peer in (ours, *over)} <= names | LIBRARIES


def test_the_command_and_its_file(tmp_path):
    script, file = ROOT / "benchmarks" / "recurrence.py", tmp_path / "found.json"
    options = ("--rounds", "1", "--threads", "1", "--json", file, "--rows", "one-sequence-128")
    result = run(sys.executable, script, "--tiny", *options, cwd=tmp_path)
    assert result.returncode == 0, result.stdout[-3000:]
    assert "to KRU(128)" in result.stdout
    found = json.loads(file.read_text(encoding="utf-8"))
    assert found["limits"]["1"]["bytes_read_per_s"] > 0
    both = [each for each in found["rows"] if each["direction"] == "both"]
    assert [each["what"] for each in both] == ["KRU(128)", "LSTM(128)"]
    assert all(each["MiB"] >= 0 for each in found["rows"])


def test_memory_is_that_of_the_output():
    row = peers.Row("", "features", 8, 1000, 1, [])
    found = recurrence.memory_of(row, peers.Candidate("KRU", 512), ["forward"])
    assert found["forward"] == pytest.approx(8 * 1000 * 1024 * 4 / 2**20, rel=0.2)


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [([(2, 2)] * 9, 10), ([(4, 4), (16, 16), (19, 19)], 39), ([(512, 512)], 512)],
)
def test_multiply_adds_of_a_product(shapes, expected):
    assert floors.per_element(shapes) == expected


def test_work_of_a_kru():
    """Three passes of ten complex multiply-adds an element, and two of a real feature."""
    row, elements = peers.Row("", "features", 3, 5, 1, []), 3 * 5 * 512
    work = floors.layer_work(row, KRU(1, 512), backward=True)
    assert work.multiply_adds == elements * (4 * 3 * 10 + 2 * 2)
    states = 8 * elements
    assert (work.read, work.written) == (2 * states + 2 * 4 * 3 * 5, states)


def test_work_of_a_kru_lstm():
    """Four passes of 39 multiply-adds, of four products; u, its gradient, and c and h."""
    row, elements = peers.Row("", "features", 3, 5, 50, []), 3 * 5 * 1216
    work = floors.layer_work(row, KRULSTM(50, 1216, factors="4,16,19"), backward=True)
    assert work.multiply_adds == 4 * elements * (4 * 39 + 2 * 50)
    states, u = 4 * elements, 4 * 4 * elements
    assert work.read == 2 * 4 * 3 * 5 * 50 + 3 * states + 3 * u
    assert work.written == 2 * states + 2 * u


def test_the_model_of_threads(monkeypatch):
    """Ten milliseconds and two for each sequence: it finds both, and deals out whole sequences."""
    times = {"1": 0.010 + 0.002 * 20, "2": 0.010 + 0.002 * 10}
    monkeypatch.setattr(scaling, "interleave", lambda runs, rounds: times)
    rows = {row["threads"]: row for row in scaling.on_threads((20, 2, 16), 1)}
    assert rows[1]["serial_ms"] == pytest.approx(10)
    assert rows[8]["ms"] == pytest.approx(10 + 2 * 3)
    assert rows[32]["ms"] == pytest.approx(10 + 2)


def test_the_picture_of_scaling(tmp_path, monkeypatch):
    small = {panel: [(2, 2, 16), (4, 4, 32)] for panel in scaling.KRUS}
    monkeypatch.setattr(scaling, "KRUS", small)
    monkeypatch.setattr(scaling, "ON_THREADS", [(20, 2, 16)])
    threads = torch.get_num_threads()
    rows = scaling.on_threads((20, 2, 16), 1)
    torch.set_num_threads(threads)
    assert [row["threads"] for row in rows] == list(scaling.THREADS)
    for panel in small:
        rows += scaling.points(panel, 1, 1)
    scaling.plot(rows, str(tmp_path / "scaling.png"))
    assert (tmp_path / "scaling.png").stat().st_size > 10_000


@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")
@pytest.mark.parametrize("options", [COPY, MUSIC])
def test_every_format_scores_like_the_model(options, train, rolls_pickle, capsys):
    """Of a task with symbols and one with features, whose sequences differ in length."""
    data = [rolls_pickle.parent] if "music" in options else []
    checkpoint = train(*data, *options, *TRAIN) / "checkpoint_last.pt"
    exported.main([str(checkpoint), "--rounds", "1"])
    lines = capsys.readouterr().out.splitlines()
    for line in lines[2 : lines.index("")]:
        _, by_model, *others = line.split()
        assert [float(other) for other in others] == [pytest.approx(float(by_model), rel=1e-4)] * 3
