"""The README's Python runs as it stands, and its results are those of RESULTS.md."""

import re
import subprocess
import sys

from .conftest import ROOT


def test_python_examples_run(tmp_path):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    examples = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    assert examples
    for code in examples:
        printed = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
        ).stdout
        assert printed.split() == re.findall(r"print\(.*\)  # (.*)", code)


def test_the_example_of_ones_own_arrays_learns(tmp_path):
    script = ROOT / "docs" / "examples" / "digits.py"
    command = [sys.executable, script, "--epochs", "6"]
    printed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    (accuracy,) = re.findall(r"test ([\d.]+) %", printed.stdout)
    assert float(accuracy) > 60


def tables(text):
    """Every row of the tables in a text, by the heads of its columns."""
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        heads, _, *rows = (
            [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()
        )
        for row in rows:
            yield dict(zip(heads, row, strict=True))


def test_results_are_those_of_the_report():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (section,) = re.findall(r"^## Results\n(.*?)^## ", readme, re.DOTALL | re.MULTILINE)
    report = list(tables((ROOT / "RESULTS.md").read_text(encoding="utf-8")))
    shown = list(tables(section))
    assert shown
    for row in shown:
        assert any(row.items() <= recorded.items() for recorded in report), row
