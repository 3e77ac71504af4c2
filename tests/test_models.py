"""The models in recipes/models have the scores that their records tell.

Those that take seconds are scored by every run of the tests; all of them with KRON_VERIFY=1, as by
`make verify`, which needs the data in $KRON_DATA.
"""

import json
import os
from pathlib import Path

import pytest

from kron_plugin.cli.evaluate import evaluate
from kron_plugin.restore import read_known

from .conftest import ROOT

MODELS = ROOT / "recipes" / "models"
DATA = Path(os.environ.get("KRON_DATA", ROOT.parent / "shared" / "data"))
ALL = "KRON_VERIFY" in os.environ
SECONDS = 2e8  # numbers of all states on the test set: what takes seconds to compute


def models():
    return sorted(MODELS.glob("*.pt"))


@pytest.mark.parametrize("path", models(), ids=lambda path: path.stem)
def test_scores_are_those_of_the_record(path):
    record = json.loads((ROOT / "recipes" / "results" / f"{path.stem}.json").read_text())
    folder = record["options"]["task"].get("data")
    data = DATA / folder if folder else None
    states = record["test"]["predictions"] * record["options"]["model"]["hidden_size"]
    if not ALL and (states > SECONDS or (data and not data.exists())):
        pytest.skip("by `make verify`, with the data")
    scores = evaluate(path, read_known(path), data and str(data))
    for metric, recorded in zip(scores["metrics"], record["test"]["metrics"], strict=True):
        assert metric["value"] == pytest.approx(recorded["value"], rel=1e-3), metric["name"]


def test_they_are_few_and_small():
    assert sum(path.stat().st_size for path in models()) < 6e6
