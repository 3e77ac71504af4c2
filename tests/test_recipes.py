"""The recipes, and the ledger of experiments held against the files it speaks of."""

import csv
import json
import os
import re
import shlex
import sys
from pathlib import Path

import pytest

from .conftest import PACKAGE, ROOT, run

COLUMNS = [
    *("recipe", "profile", "command", "data", "seed", "metric", "result", "trivial_baseline"),
    *("published", "log"),
]
RESULTS = ROOT / "recipes" / "results"
RECIPES = {"copy_memory", "adding", "pixel_mnist", "char_lm", "music"}


def rows(profile=None):
    with open(ROOT / "recipes" / "ledger.csv", newline="", encoding="utf-8") as file:
        return [r for r in csv.DictReader(file) if profile in (None, r["profile"])]


def test_every_recipe_has_every_profile():
    for profile in ("smoke", "quick", "paper"):
        assert {row["recipe"] for row in rows(profile)} == RECIPES
    for row in rows():
        assert list(row) == COLUMNS
        assert (ROOT / "recipes" / f"{row['recipe']}.sh").is_file()
        command = f"bash recipes/{row['recipe']}.sh {row['profile']}"
        assert row["command"] == command or row["command"].startswith(command + " ")


def test_results_in_the_ledger_are_those_of_the_runs():
    for row in rows():
        if not row["log"]:
            assert not row["result"]
            continue
        scored = json.loads((RESULTS / f"{row['log']}.json").read_text())
        (metric,) = [m for m in scored["metrics"] if m["name"] == row["metric"]]
        assert scored["split"] == "test"
        assert f"{metric['value']:.4g}" == row["result"]
        assert f"{scored['baseline']['value']:.4g}" == row["trivial_baseline"]
        log = (RESULTS / f"{row['log']}.log").read_text()
        assert re.search(rf'num_updates": "{scored["updates"]}"', log)
        assert not re.search(r"/(root|home|work)/", log)


def test_no_result_lies_about_unnamed():
    assert {p.stem for p in RESULTS.iterdir()} == {row["log"] for row in rows() if row["log"]}


@pytest.mark.parametrize("row", rows("smoke"), ids=lambda row: row["recipe"])
def test_smoke_profile_beats_the_trivial_baseline(row, tmp_path):
    runs = tmp_path / "runs"
    venv = Path(sys.executable).parent.parent
    env = {"KRON_RUNS": str(runs), "KRON_VENV": os.environ.get("KRON_VENV", str(venv))}
    result = run(*shlex.split(row["command"]), cwd=ROOT, env=env)
    assert result.returncode == 0, result.stdout[-3000:]
    out = runs / f"{row['recipe']}_smoke"
    scored = json.loads((out / "result.json").read_text())
    metric, baseline = scored["metrics"][0]["value"], scored["baseline"]["value"]
    assert scored["metrics"][0]["name"] == row["metric"]
    if row["metric"] == "accuracy":
        assert metric > 2 * baseline
    else:
        assert metric < 0.7 * baseline
    assert (out / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert str(out / "curve.png") in result.stdout
    if row["recipe"] == "copy_memory":
        again = run(*shlex.split(row["command"]), cwd=ROOT, env=env)
        assert f"trained already; remove {out}" in again.stdout


@pytest.mark.parametrize(
    ("recipe", "arguments", "message"),
    [
        ("music", ["fast"], "music: unknown profile 'fast'; choose smoke, quick or paper"),
        ("music", [], "music: no '*.pickle' in"),
        ("pixel_mnist", ["quick"], "pixel_mnist: no 'train-images-idx3-ubyte*' in"),
    ],
)
def test_wrong_calls_end_at_once(recipe, arguments, message, tmp_path):
    venv = str(Path(sys.executable).parent.parent)
    env = {"KRON_DATA": str(tmp_path), "KRON_VENV": venv, "KRON_RUNS": str(tmp_path / "runs")}
    result = run("bash", f"recipes/{recipe}.sh", *arguments, cwd=ROOT, env=env)
    assert result.returncode == 2
    assert message in result.stdout
    assert "Traceback" not in result.stdout


def test_the_sample_config_trains_with_hydra(kron_eval, tmp_path):
    trained = run(
        *(sys.executable, "-m", "fairseq_cli.hydra_train", "--config-dir", ROOT / "recipes/config"),
        *("--config-name", "copy_memory", f"common.user_dir={PACKAGE}"),
        *("common.cpu=true", "optimization.max_update=60"),
        cwd=tmp_path,
    )
    assert trained.returncode == 0, trained.stdout[-3000:]
    checkpoint = tmp_path / "runs" / "copy_memory_hydra" / "checkpoints" / "checkpoint_last.pt"
    scored = json.loads(kron_eval(checkpoint, "--json", "--cpu").stdout)
    assert scored["updates"] == 60
    assert scored["metrics"][0]["value"] < scored["baseline"]["value"] / 2
