"""The ledger of experiments, held against the files it speaks of."""

import csv
import json
import re

from .conftest import ROOT

COLUMNS = ["recipe", "command", "seed", "metric", "result", "trivial_baseline", "published", "log"]


def rows():
    with open(ROOT / "recipes" / "ledger.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_ledger_names_recipes_and_logs_that_exist():
    assert rows()
    for row in rows():
        assert list(row) == COLUMNS
        assert (ROOT / "recipes" / row["recipe"]).is_file()
        assert row["command"].startswith(f"bash recipes/{row['recipe']}")


def test_results_in_the_ledger_are_those_of_the_runs():
    for row in rows():
        scored = json.loads((ROOT / "recipes" / "results" / f"{row['log']}.json").read_text())
        (metric,) = [m for m in scored["metrics"] if m["name"] == row["metric"]]
        assert scored["split"] == "test"
        assert f"{metric['value']:.4g}" == row["result"]
        assert f"{scored['baseline']['value']:.4g}" == row["trivial_baseline"]
        log = (ROOT / "recipes" / "results" / f"{row['log']}.log").read_text()
        assert f'"num_updates": "{scored["updates"]}"' in log
        assert not re.search(r"/(root|home|work)/", log)


def test_no_result_lies_about_unnamed():
    logs = {row["log"] for row in rows()}
    assert {p.stem for p in (ROOT / "recipes" / "results").iterdir()} == logs
