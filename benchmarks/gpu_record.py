"""Write the results of a GPU: one JSON file for each GPU, with a list of rows for each part."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any, Dict, List

import torch

from kron_plugin.files import atomic_write


def machine() -> Dict[str, Any]:
    """The GPU and the versions that its numbers depend on."""
    import cupy

    return {
        "gpu": torch.cuda.get_device_name(),
        "driver": _driver(),
        "cuda": torch.version.cuda,
        "torch": torch.__version__,
        "cupy": cupy.__version__,
    }


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    if not shutil.which(command[0]):
        return "unknown"
    return subprocess.run(command, capture_output=True, text=True).stdout.split("\n")[0]


class Record:
    """`FOLDER/<gpu>.json`, rewritten for each part with new rows.

    Earlier rows of other parts stay if the machine and the versions are the same.
    """

    def __init__(self, folder: Path) -> None:
        here = machine()
        self.path = folder / f"{here['gpu'].lower().replace(' ', '-')}.json"
        self.facts = {"machine": here, "parts": {}}
        if self.path.exists():
            before = json.loads(self.path.read_text(encoding="utf-8"))
            if before["machine"] == here:
                self.facts = before

    def keep(self, part: str, rows: List[dict]) -> None:
        """Write the rows of a part, in place of its earlier ones."""
        self.facts["parts"][part] = rows
        with atomic_write(self.path) as unfinished:
            unfinished.write_text(json.dumps(self.facts, indent=1), encoding="utf-8")
