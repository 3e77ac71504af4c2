"""kron-eval export, from a checkpoint to the files."""

import sys

import pytest
import torch
from fairseq_cli.train import cli_main

import kron_plugin
from kron_plugin.cli.main import main

kron_plugin.register()
pytestmark = pytest.mark.filterwarnings("ignore")  # from fairseq's dependencies


@pytest.fixture
def train(tmp_path, monkeypatch):
    """Train the adding problem for an update; return the path of the checkpoint."""

    def call(*options):
        argv = [
            *("train", "--task", "adding", "--steps", 6, "--arch", "kru", "--hidden-size", 4),
            *("--criterion", "soft_unitary", "--optimizer", "kron_adam", "--lr", "1e-2", "--cpu"),
            *("--train-examples", 16, "--eval-examples", 8, "--batch-size", 16, "--seed", 1),
            *("--max-update", 1, "--save-dir", tmp_path / "run", "--no-epoch-checkpoints"),
            *("--num-workers", 0, "--disable-validation", *options),
        ]
        monkeypatch.setattr(sys, "argv", [str(a) for a in argv])
        cli_main()
        return tmp_path / "run" / "checkpoint_last.pt"

    return call


@pytest.mark.parametrize(
    ("format", "output", "beside"),
    [("torch", "x.pt2", "x_step.pt2"), ("onnx", "x.onnx", "x_step.onnx"), ("c", "x.c", "x.h")],
)
def test_the_second_file_is_checked_too(format, output, beside, tmp_path, capsys):
    second, argv = tmp_path / beside, ["--format", format, "--output", str(tmp_path / output)]
    second.write_text("a checkpoint")
    assert main(["export", str(second), *argv]) == 2
    assert capsys.readouterr().err == (
        f"kron-eval: --output {second}: is the checkpoint itself; choose another name\n"
    )
    checkpoint = second.rename(tmp_path / "checkpoint.pt")
    second.mkdir()
    assert main(["export", str(checkpoint), *argv]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"kron-eval: --output {second}: is a folder; name a file in it"


@pytest.mark.parametrize(
    ("format", "output"), [("torch", "x.onnx"), ("onnx", "x"), ("c", "x.pt2"), ("c", "a.b.c")]
)
def test_a_name_is_refused_before_the_checkpoint_is_read(format, output, tmp_path, capsys):
    (tmp_path / "damaged.pt").write_text("no checkpoint")
    argv = ["export", str(tmp_path / "damaged.pt"), "--format", format]
    assert main([*argv, "--output", str(tmp_path / output)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"kron-eval: {tmp_path / output}: ")


def test_a_checkpoint_becomes_programs(train, tmp_path, capsys):
    checkpoint, file = train("--dropout", 0.5), tmp_path / "adding.pt2"
    capsys.readouterr()
    assert main(["export", str(checkpoint), "--format", "torch", "--output", str(file)]) == 0
    step = tmp_path / "adding_step.pt2"
    assert capsys.readouterr().err == f"wrote {file}\nwrote {step}\n"
    x, model = torch.rand(3, 8, 2), kron_plugin.load(checkpoint)
    output, h = torch.export.load(file).module()(x)
    torch.testing.assert_close(output, model(x).detach())
    going_on, _ = torch.export.load(step).module()(x[:, 0], h)
    longer = torch.cat([x, x[:, :1]], dim=1)
    torch.testing.assert_close(going_on, model(longer).detach())


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--cell", "lstm"), "its cell is torch's own; torch.export and torch.onnx export it by"),
        (("--bidirectional",), "its layers are bidirectional, so it has no single step"),
    ],
)
def test_what_cannot_be_exported_is_said(train, tmp_path, capsys, options, reason):
    checkpoint = train(*options)
    capsys.readouterr()
    output = tmp_path / "x.pt2"
    assert main(["export", str(checkpoint), "--format", "torch", "--output", str(output)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"kron-eval: {checkpoint}: cannot be exported: {reason}")
    assert not list(tmp_path.glob("x*"))
