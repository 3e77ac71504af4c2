"""Trained models for programs without this package: `kron-eval export`.

Each format is a module with `export(model, output)`, which returns the files that it wrote.
"""

import re
from importlib import import_module
from pathlib import Path
from typing import Any, Callable, List

from ..checks import require

# The module of each format, and how its files end.
FORMATS = {"torch": ("program", ".pt2"), "onnx": ("onnx", ".onnx"), "c": ("c", ".c")}
C_HEADERS = """assert complex ctype errno fenv float inttypes iso646 limits locale math setjmp
    signal stdarg stdbool stddef stdint stdio stdlib string tgmath time wchar wctype"""


def files(format: str, output: Path) -> List[Path]:
    """The files of an export to `output`: NAME.c and NAME.h, or NAME and NAME_step.

    Raises:
        ValueError: the name does not suit the format.
    """
    output = Path(output)
    _, suffix = FORMATS[format]
    require(output.suffix == suffix, f"{output}: must end in {suffix}")
    if format != "c":
        return [output, output.with_stem(f"{output.stem}_step")]
    name = output.stem
    require(
        bool(re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name)),
        f"{output}: names in C begin with {name!r}, so it must be a letter and then letters, digits"
        " and underscores",
    )
    is_taken = name in C_HEADERS.split()
    require(not is_taken, f"{output}: would hide C's own {name}.h; choose another name")
    return [output, output.with_suffix(".h")]


def exporter(format: str) -> Callable[[Any, Path], List[Path]]:
    """The `export` of a format.

    Raises:
        ModuleNotFoundError: a package that it needs is not installed.
    """
    module, _ = FORMATS[format]
    return import_module(f".{module}", __name__).export


def require_exportable(
    model: Any,  # what `kron_plugin.load` returns
) -> None:
    """Raise a ValueError unless a model can be exported."""
    from ..modules.stack import RecurrentStack  # commands need not wait for torch

    is_ours = isinstance(model.cell, RecurrentStack)
    require(is_ours, "its cell is torch's own; torch.export and torch.onnx export it by themselves")
    require(model.cell.directions == 1, "its layers are bidirectional, so it has no single step")
