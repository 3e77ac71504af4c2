"""A task of another plugin is trained a moment, scored, recorded and reported like ours."""

import json
import sys

import pytest

from kron_plugin.cli.main import main

from ..conftest import PACKAGE, ROOT

PARITY = ROOT / "tests" / "parity"
PUBLISHED = """\
task,setting,model,parameters,test,source,url
parity,"parity, T = 6",LSTM,1k,99 % of parities,Somebody 2020,https://example.org
"""


@pytest.fixture
def checkpoint(train):
    out = train(
        *("--task", "parity", "--bits", 6, "--train-examples", 8, "--eval-examples", 4),
        *("--arch", "kru", "--hidden-size", 8, "--batch-size", 4, "--max-update", 2),
        *("--criterion", "soft_unitary", "--optimizer", "kron_adam", "--lr", "1e-2"),
        *("--log-interval", 1),
        user_dir=PARITY,
    )
    return out / "checkpoint_best.pt"


def test_it_is_told_like_ours(checkpoint, kron_eval, tmp_path, monkeypatch, capsys):
    unknown = kron_eval(checkpoint, "--user-dir", PACKAGE)
    (line,) = unknown.stdout.splitlines()
    assert unknown.returncode == 2
    assert "its task is 'parity', which is not registered; --user-dir names" in line

    monkeypatch.setattr(sys, "path", [*sys.path])  # --user-dir adds to it
    records, output = tmp_path / "records", tmp_path / "RESULTS.md"
    records.mkdir()
    first = records / "first.json"
    options = ("--log", tmp_path / "train.log", "--command", "make parity", "--output", first)
    assert call("record", checkpoint, *options, "--user-dir", PARITY) == 0
    assert "trivial baseline        50 % of parities" in capsys.readouterr().out

    run = json.loads(first.read_text())
    for name, seed, correct in (("first", 1, 45.0), ("second", 2, 95.0)):
        run["seed"], run["test"]["metrics"][0]["value"] = seed, correct
        (records / f"{name}.json").write_text(json.dumps(run))
    (records / "published.csv").write_text(PUBLISHED)
    assert call("report", "--results", records, "--output", output, "--user-dir", PARITY) == 0
    section = output.read_text().split("\n## ")[1]
    assert section.startswith("Parity of bits\n")
    ours, other = (line.split("|") for line in section.splitlines() if "| parity, T = 6" in line)
    assert [cell.strip() for cell in (ours[2], ours[4])] == [
        "KRU(8)",
        "70 (worst 45) % of parities",
    ]
    assert other[4].strip() == "99 % of parities"
    assert "![Parity of bits: % of parities over the updates](records/parity.png)" in section
    assert (records / "parity.png").is_file()


def call(*args):
    return main([str(arg) for arg in args])
