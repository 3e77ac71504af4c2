"""A trained LSTM or RNN becomes a KRU-LSTM or KRU: scored alike, and trained further."""

import os
import sys

import pytest
import torch
from fairseq_cli.train import cli_main

from kron_plugin.cli.evaluate import evaluate
from kron_plugin.cli.main import main
from kron_plugin.restore import read, require_known_options

pytestmark = pytest.mark.filterwarnings("ignore")  # from fairseq's dependencies


@pytest.fixture
def train(tmp_path, monkeypatch):
    """Train the adding problem for two updates; return the path of the last checkpoint."""

    def call(*options, folder="run"):
        argv = [
            *("train", "--task", "adding", "--steps", 6, "--arch", "kru", "--hidden-size", 4),
            *("--criterion", "soft_unitary", "--optimizer", "kron_adam", "--lr", "1e-2", "--cpu"),
            *("--train-examples", 64, "--eval-examples", 8, "--batch-size", 16, "--seed", 1),
            *("--max-update", 2, "--save-dir", tmp_path / folder, "--no-epoch-checkpoints"),
            *("--num-workers", 0, "--disable-validation", *options),
        ]
        monkeypatch.setattr(sys, "argv", [str(a) for a in argv])
        cli_main()
        return tmp_path / folder / "checkpoint_last.pt"

    return call


def score(path):
    state = read(path)
    require_known_options(path, state)
    return evaluate(path, state, cpu=True)


# Root may try.
IN_PROC = (
    "No such file or directory"
    if os.access("/proc", os.W_OK)
    else "nothing can be written into /proc"
)


@pytest.mark.parametrize("cell", ["lstm", "rnn"])
@pytest.mark.parametrize("shape", [(), ("--num-layers", 2, "--bidirectional")])
def test_one_factor_changes_nothing_but_the_cell(train, tmp_path, cell, shape, capsys):
    trained = train("--cell", cell, *shape)
    new = tmp_path / "new.pt"
    capsys.readouterr()
    assert main(["compress", str(trained), "--factors", "4", "--output", str(new)]) == 0
    before, after = score(trained), score(new)
    assert after["cell"] == {"lstm": "kru_lstm", "rnn": "kru"}[cell]
    assert after["factors"] == "4 real"
    assert after["metrics"][0]["value"] == pytest.approx(before["metrics"][0]["value"], rel=1e-5)
    assert after["recurrent_parameters"] == before["recurrent_parameters"]
    matrices = {"lstm": 4, "rnn": 1}[cell] * (4 if shape else 1)
    told = capsys.readouterr()
    assert told.out.count("0.0000") == matrices
    assert told.err == f"wrote {new}\n"


@pytest.mark.parametrize("cell", ["lstm", "rnn"])
def test_what_is_compressed_is_trained_further(train, tmp_path, cell, capsys):
    trained, new = train("--cell", cell), tmp_path / "new.pt"
    main(["compress", str(trained), "--factors", "2,2", "--output", str(new)])
    printed = capsys.readouterr().out
    size = {"lstm": 64, "rnn": 16}[cell]
    assert printed.count(" 16 ") == size // 16
    assert score(new)["recurrent_parameters"] == size // 2
    options = printed.split("\n    ")[-1].split()
    finetuned = read(train(*options, folder="further"))
    start = read(new)["model"]
    assert finetuned["model"].keys() == start.keys()
    steps = [(finetuned["model"][k] - start[k]).abs().max().item() for k in start]
    assert 0 < max(steps) < 0.05, "two steps of 0.01 from where it was"


def test_the_errors_are_those_of_the_nearest_products(train, tmp_path, capsys):
    trained, new = train("--cell", "lstm"), tmp_path / "new.pt"
    state = read(trained)
    key = next(key for key in state["model"] if "weight_hh" in key)
    product = torch.kron(torch.randn(2, 2), torch.randn(2, 2))
    state["model"][key] = torch.cat([product, torch.eye(4), torch.eye(4).flip(0), -product])
    torch.save(state, trained)
    main(["compress", str(trained), "--factors", "2,2", "--output", str(new)])
    assert capsys.readouterr().out.count("0.0000") == 4
    # 2x2 factors reach three quarters of ‖W‖² for an identity without one corner.
    corner = torch.eye(4)
    corner[3, 3] = 0
    state["model"][key] = torch.cat([corner] * 4)
    torch.save(state, trained)
    main(["compress", str(trained), "--factors", "2,2", "--output", str(new)])
    largest = torch.linalg.svdvals(torch.tensor([[1.0, 1.0], [1.0, 0.0]]))[0]
    expected = float((1 - largest**2 / 3).sqrt())
    assert capsys.readouterr().out.count(f"{expected:.4f}") == 4


@pytest.mark.parametrize(
    ("cell", "arguments", "message"),
    [
        ("gru", ("--factors", "2,2", "--output", "new.pt"), "its cell is gru; those of lstm and"),
        (
            "rnn",
            ("--factors", "2,3", "--output", "new.pt"),
            "--factors='2,3' multiply to 6, but its --hidden-size is 4",
        ),
        ("rnn", ("--factors", "2,2", "--output", "no/new.pt"), "there is no folder no"),
        ("rnn", ("--factors", "2,2", "--output", "/proc/new.pt"), IN_PROC),
    ],
)
def test_what_cannot_be_compressed_is_said(train, cell, arguments, message, capsys):
    assert main(["compress", str(train("--cell", cell)), *arguments]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert message in line
