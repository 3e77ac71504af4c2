"""Trained models for programs without this package: `kron-eval export`.

Each format is a module with `export(model, output)`, which returns the files that it wrote.
"""

from importlib import import_module
from pathlib import Path
from typing import Any, Callable, List

from ..checks import require

FORMATS = {"torch": "program", "onnx": "onnx", "c": "c"}  # the module of each format


def exporter(format: str) -> Callable[[Any, Path], List[Path]]:
    """The `export` of a format.

    Raises:
        ModuleNotFoundError: a package that it needs is not installed.
    """
    return import_module(f".{FORMATS[format]}", __name__).export


def require_exportable(
    model: Any,  # what `kron_plugin.load` returns
) -> None:
    """Raise a ValueError unless a model can be exported."""
    from ..modules.stack import RecurrentStack  # commands need not wait for torch

    is_ours = isinstance(model.cell, RecurrentStack)
    require(is_ours, "its cell is torch's own; torch.export and torch.onnx export it by themselves")
    require(model.cell.directions == 1, "its layers are bidirectional, so it has no single step")
