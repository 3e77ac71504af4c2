"""Every cell and option, trained for two updates, resumed and scored, in one process."""

import sys

import pytest
import torch
from fairseq_cli.train import cli_main

from kron_plugin import registration
from kron_plugin.cli.evaluate import evaluate
from kron_plugin.restore import read, require_known_options

pytestmark = pytest.mark.filterwarnings("ignore")  # from fairseq's dependencies


@pytest.fixture
def train(tmp_path, monkeypatch):
    """Train the adding problem; return the path of the last checkpoint."""

    def call(folder, updates, *options):
        out = tmp_path / folder
        argv = [
            *("train", "--task", "adding", "--steps", 6, "--arch", "kru", "--hidden-size", 4),
            *("--criterion", "soft_unitary", "--optimizer", "kron_adam", "--lr", "1e-2", "--cpu"),
            *("--train-examples", 64, "--eval-examples", 8, "--batch-size", 16, "--seed", 1),
            *("--max-update", updates, "--save-dir", out, "--no-epoch-checkpoints"),
            *("--num-workers", 0, "--disable-validation", *options),
        ]
        monkeypatch.setattr(sys, "argv", [str(a) for a in argv])
        cli_main()
        return out / "checkpoint_last.pt"

    return call


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--cell", "kru_lstm"),
        ("--cell", "rnn", "--num-layers", 2),
        ("--cell", "lstm", "--bidirectional"),
        ("--cell", "gru"),
        ("--unitary", "hard"),
        ("--unitary", "none", "--kron-real", "--kron-activation", "tanh", "--kron-factors", "4"),
        ("--cell", "kru_lstm", "--unitary", "soft", "--num-layers", 2, "--dropout", 0.2),
        ("--num-layers", 2, "--bidirectional", "--dropout", 0.2),
    ],
    ids=lambda options: " ".join(map(str, options)) or "kru",
)
def test_it_resumes_exactly_and_is_scored(train, options):
    options = [str(o) for o in options]
    straight = read(train("straight", 4, *options))
    train("resumed", 2, *options)
    path = train("resumed", 4, *options)
    resumed = read(path)
    torch.testing.assert_close(resumed["model"], straight["model"], rtol=0, atol=0)
    require_known_options(path, resumed)
    scored = evaluate(path, resumed, cpu=True)
    assert scored["updates"] == 4
    assert scored["examples"] == 8
    assert scored.get("backend") in (None, "cpu", "reference")
    if "hard" in options:
        assert scored["deviation_from_unitary"] < 1e-5


def test_a_model_of_another_machine_is_scored_on_what_there_is_here(train):
    path = train("run", 1)
    state = read(path)
    state["cfg"]["model"]["kron_backend"] = "cuda"
    torch.save(state, path)
    assert evaluate(path, state, cpu=True)["backend"] in ("cpu", "reference")
    with pytest.raises(ValueError, match="--data here: the task adding reads no data"):
        evaluate(path, state, data="here", cpu=True)
    state["cfg"]["task"] = {"_name": "music", "data": "/absent/songs"}
    with pytest.raises(ValueError, match="was trained on /absent/songs, which is not here; --data"):
        evaluate(path, state, cpu=True)


def test_options_that_do_not_fit_a_checkpoint_are_named(train, capsys):
    path = train("run", 1)
    with pytest.raises(Exception, match="cannot be resumed: the checkpoint was") as error:
        train("run", 2, "--cell", "gru")
    capsys.readouterr()
    registration._say_plainly(error.type, error.value, error.tb)
    (line,) = capsys.readouterr().err.splitlines()
    assert (
        "checkpoint_last.pt: cannot be resumed: the checkpoint was trained with another --cell"
        in line
    )

    for change, message in (
        ({"depth": 3}, r"has the option --depth=3, which this version of kron_plugin does not"),
        ({"cell": "mamba"}, "--cell=mamba: "),
        ({"num_layers": "many"}, "--num-layers=many: "),
    ):
        state = read(path)
        state["cfg"]["model"].update(change)
        with pytest.raises(ValueError, match=f"checkpoint_last.pt: its model .*{message}"):
            require_known_options(path, state)
