"""The README's Python runs as it stands."""

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
