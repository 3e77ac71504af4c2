"""Imports point one way, and docs/architecture.md names what is there.

Every import counts: those in functions, which put off a cost but not a dependence, and those for
type checkers alone. Two things are no imports of a module's own and do not count: Python imports
the packages around a module, and `kron_plugin.register` imports all that fairseq is to know.
"""

import ast
import re
import sys
from functools import cache
from graphlib import TopologicalSorter
from importlib.util import resolve_name

import pytest

from .conftest import PACKAGE, ROOT

# What each room may import, beside itself. Every line names rooms of the lines above it.
ROOMS = {
    "helpers": "",
    "ops": "helpers",
    "modules": "ops",
    "models": "helpers ops modules",
    "training": "helpers models",
    "tasks": "helpers modules models",
    "criterions": "helpers models tasks",
    "optim": "modules",
    "trained": "helpers modules models training tasks",
    "export": "helpers ops modules trained",
    "__init__": "modules training trained",
    "cli": "helpers ops modules models training tasks criterions trained export __init__",
    "__main__": "cli",
}
FILES = {  # the rooms of the files in kron_plugin itself
    "helpers": "cache checks files packages packed progress",
    "training": "arrays batches checkpoints console fairseq_patches registration resume saving"
    " schema updates workers",
    "trained": "plugins restore trained",
}
ROOMS_OF_OPS = {
    "activation": "",
    "backends": "",
    "operators": "",
    "checks": "backends",
    "inputs": "backends",
    "cuda_kernels": "backends",
    "cuda_geometry": "activation cuda_kernels",
    "native": "backends",
    "kron": "activation backends operators checks cuda_kernels cuda_geometry native",
    "recurrence": "activation backends operators checks inputs cuda_kernels cuda_geometry"
    " kron native",
    "cells": "activation recurrence",
    "__init__": "activation kron cells",
}
TABLES = {"kron_plugin": ROOMS, "kron_plugin.ops": ROOMS_OF_OPS}
LIBRARIES = {  # all that these may import from elsewhere; the others may import fairseq, too
    "helpers": {"tqdm"},
    "ops": {"torch", "numpy", "cupy"},
    "modules": {"torch", "numpy"},
}

PAGE = ROOT / "docs" / "architecture.md"
CODE = ("py", "h", "cpp", "cu", "cuh")  # suffixes


def files(*suffixes):
    """The package's files; `tasks` and `cuda` are links in a checkout, which rglob passes over."""
    tops = (PACKAGE, PACKAGE / "tasks", PACKAGE / "cuda")
    return {path for top in tops for suffix in suffixes for path in top.rglob(f"*.{suffix}")}


@cache
def modules():
    """The package's modules by name."""
    paths = {path.relative_to(PACKAGE.parent).with_suffix(""): path for path in files("py")}
    return {".".join(name.parts).removesuffix(".__init__"): path for name, path in paths.items()}


@cache
def imports():
    """What each module imports: modules of ours by their whole names, libraries by their first."""
    return {module: set(imported(module, path)) - {module} for module, path in modules().items()}


def imported(module, path):
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            source = resolve_name("." * node.level + (node.module or ""), package)
            inner = [f"{source}.{alias.name}" for alias in node.names]
            names = [name if name in modules() else source for name in inner]
        yield from (name if is_in(name, "kron_plugin") else name.split(".")[0] for name in names)


def is_in(module, package):
    return f"{module}.".startswith(f"{package}.")


def room_of(module, package="kron_plugin"):
    name = module.removeprefix(package).removeprefix(".").split(".")[0] or "__init__"
    rooms = [room for room, names in FILES.items() if name in names.split()]
    return rooms[0] if rooms and module == f"kron_plugin.{name}" else name


@pytest.mark.parametrize("package", TABLES)
def test_imports_point_one_way(package):
    table = {room: allowed.split() for room, allowed in TABLES[package].items()}
    for i, allowed in enumerate(table.values()):
        assert set(allowed) <= set(list(table)[:i]), "the table itself points both ways"
    inside = {name: room_of(name, package) for name in imports() if is_in(name, package)}
    assert set(inside.values()) == set(table), "each room has a line in the table"
    wrong = [
        f"{module} imports {name}: {room} may not import {inside[name]}"
        for module, room in inside.items()
        for name in imports()[module] & inside.keys()
        if inside[name] not in (room, *table[room])
    ]
    assert not wrong, "\n".join(wrong)


def test_our_modules_are_imported_by_their_own_names():
    """`tasks` and `cuda` at the top of the checkout are kron_plugin's, or another's."""
    names = set().union(*imports().values())
    assert {name for name in names if is_in(name, "kron_plugin")} <= modules().keys()
    assert names & {"tasks", "cuda"} == set()


@pytest.mark.parametrize("room", LIBRARIES)
def test_layers_need_torch_alone(room):
    """Neither fairseq nor what comes with it."""
    needed = {
        (module, name)
        for module, names in imports().items()
        for name in names - sys.stdlib_module_names
        if room_of(module) == room and not is_in(name, "kron_plugin")
    }
    assert {(m, name) for m, name in needed if name not in LIBRARIES[room]} == set()


def test_no_modules_import_each_other_in_a_circle():
    TopologicalSorter(imports()).prepare()  # raises a CycleError, which names the circle


def test_the_page_names_every_room():
    page = PAGE.read_text(encoding="utf-8")
    folders = {path.parent.relative_to(PACKAGE).as_posix() for path in files(*CODE)} - {"."}
    assert {name for name in folders if not re.search(rf"(?<![\w/]){name}/(?!\w)", page)} == set()


def test_the_page_names_no_file_that_is_not_there():
    """Paths start at the root or in kron_plugin; NAME stands for any name."""
    page = PAGE.read_text(encoding="utf-8")
    paths = re.findall(rf"(?:[\w.-]+/)+[\w.-]*\w|(?:\w+/)+|\w+\.(?:{'|'.join(CODE)}|md|sh)\b", page)
    assert len(paths) > 50
    bases = (ROOT, PACKAGE)
    found = {
        path: any(any(base.glob(path.replace("NAME", "*"))) for base in bases) for path in paths
    }
    assert [path for path, is_there in found.items() if not is_there] == []
