import json
import pickle

import pytest
import torch

from kron_plugin.cli.curve import read_log

from .test_damaged_files import STATE

COPY = (
    *("--task", "copy_memory", "--delay", 50, "--eval-examples", 30, "--arch", "kru"),
    *("--criterion", "soft_unitary", "--optimizer", "kron_rmsprop", "--lr", "1e-3"),
    *("--clip-norm", 1, "--batch-size", 32, "--log-interval", 20),
)


def test_copy_memory_is_learned_and_scored(train, kron_eval, tmp_path):
    checkpoint = train(*COPY, "--max-update", 100) / "checkpoint_last.pt"
    result = kron_eval(checkpoint, "--json")
    assert result.returncode == 0, result.stdout
    scored = json.loads(result.stdout)
    bits, recall = scored["metrics"]
    assert bits["unit"] == "bits per position"
    assert scored["baseline"]["value"] == pytest.approx(30 / 70)
    assert bits["value"] < scored["baseline"]["value"] / 5
    assert recall["value"] > 90
    assert scored["examples"] == 30
    assert scored["recurrent_parameters"] == 56
    smallest, largest = scored["singular_values_of_W"]
    assert 0.5 < smallest < largest < 2
    log = read_log(tmp_path / "train.log")
    (logged,) = [r["valid_singular_max"] for r in log if "valid_bits" in r]
    assert logged == pytest.approx(largest, rel=1e-5)

    # The score is the same for any batch size and as a table; the log gives a picture.
    small = json.loads(kron_eval(checkpoint, "--json", "--batch-size", 7).stdout)
    assert small["metrics"][0]["value"] == pytest.approx(bits["value"], rel=1e-4)
    table = kron_eval(checkpoint, "--split", "valid").stdout
    assert "trivial baseline" in table
    assert "2,2,2,2,2,2,2 complex" in table
    assert f"singular values of W    {smallest:.4g} to {largest:.4g}\n" in table
    picture = tmp_path / "curve.png"
    drawn = kron_eval("curve", tmp_path / "train.log", "--metric", "bits", "--output", picture)
    assert drawn.returncode == 0, drawn.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert not list(tmp_path.glob("*.part"))


def test_music_is_learned_from_a_pickle(train, kron_eval, rolls_pickle):
    out = train(
        rolls_pickle.parent,
        *("--task", "music", "--arch", "kru", "--hidden-size", 32, "--criterion", "soft_unitary"),
        *("--optimizer", "kron_adam", "--lr", "1e-2", "--batch-size", 8, "--max-epoch", 16),
    )
    result = json.loads(kron_eval(out / "checkpoint_best.pt", "--json").stdout)
    assert result["task"] == "music"
    assert result["metrics"][0]["value"] < 0.6 * result["baseline"]["value"]
    assert result["examples"] == 7
    assert result["predictions"] == sum(range(11, 18))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--delay", 0), "--delay=0: must be at least 1"),
        (("--kron-factors", "2,3"), "--kron-factors='2,3' multiply to 6, but --hidden-size is 128"),
        (("--criterion", "cross_entropy"), "--criterion cross_entropy: our tasks have losses"),
        (("--unitary-penalty", -1), "--unitary-penalty=-1.0: must be from 0 to 1e+06"),
    ],
)
def test_bad_options_end_before_training(train, options, message):
    printed = train(*COPY, *options, expect=1)
    assert message in printed.strip().splitlines()[-1]
    assert "Traceback" not in printed


def test_a_missing_data_folder_is_named(train, tmp_path):
    output = train(
        tmp_path / "absent",
        *("--task", "music", "--arch", "kru", "--criterion", "soft_unitary"),
        *("--optimizer", "kron_adam", "--lr", "1e-2", "--batch-size", 8),
        expect=1,
    )
    assert "absent: no such folder" in output.strip().splitlines()[-1]


class Bomb:
    def __reduce__(self):
        return print, ("ran",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such checkpoint"),
        (b"", "not a readable checkpoint"),
        (b"PK\x03\x04 not really a zip file", "not a readable checkpoint"),
        (pickle.dumps(Bomb()), "not a readable checkpoint"),
    ],
)
def test_a_bad_checkpoint_is_one_line_and_exit_code_2(kron_eval, tmp_path, content, message):
    path = tmp_path / "model.pt"
    if content is not None:
        path.write_bytes(content)
    result = kron_eval(path)
    assert result.returncode == 2
    (line,) = result.stdout.strip().splitlines()
    assert line.startswith("kron-eval: ")
    assert message in line
    assert "model.pt" in line


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"weights": 1}, "not a checkpoint of fairseq-train"),
        ({"cfg": {"model": {"_name": "lstm"}}, "model": {}}, "its architecture is 'lstm'"),
        (
            {**STATE, "cfg": {"model": {"_name": "kru_lm"}, "task": {"_name": "translation"}}},
            "its task is 'translation'",
        ),
        ({**STATE, "cfg": {"model": {"_name": "kru"}}}, "checkpoint['cfg'] has no 'task'"),
        ({**STATE, "cfg": {"model": {"_name": "kru"}, "task": None}}, "its task is None"),
    ],
)
def test_checkpoints_of_others_are_told_apart(kron_eval, tmp_path, content, message):
    torch.save(content, tmp_path / "model.pt")
    result = kron_eval(tmp_path / "model.pt")
    assert result.returncode == 2
    assert message in result.stdout


def test_a_log_without_records_or_metric_is_named(kron_eval, tmp_path):
    log = tmp_path / "train.log"
    log.write_text("no json here\n")
    command = ("curve", log, "--metric", "bits", "--output", tmp_path / "c.png")
    assert "no records" in kron_eval(*command).stdout
    log.write_text('{"valid_nll": "1.5", "valid_num_updates": "3"}\n')
    assert "--metric bits: not in the log, which has nll, num_updates" in kron_eval(*command).stdout
    assert not list(tmp_path.glob("*.png"))
    log.write_text('[1]\n{"bits": "1.5", "num_updates": "3"}\n')  # no baseline: still a curve
    assert kron_eval(*command).returncode == 0
