"""Format `torch`: programs of torch.export, which torch loads without this package."""

from io import BytesIO
from pathlib import Path
from typing import List

import torch
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule
from torch.utils._pytree import tree_map

from ..trained import Trained
from . import files
from .forms import Form, write


def export(model: Trained, output: Path) -> List[Path]:
    """Write a program for whole sequences, and one for a single step; the files."""
    return write(model, files("torch", output), _content)


def _content(form: Form) -> bytes:
    program = torch.export.export(form, form.inputs, dynamic_shapes=tree_map(Dim, form.axes))
    _forget_sources(program)
    file = BytesIO()
    torch.export.save(program, file)
    return file.getvalue()


def _forget_sources(program: ExportedProgram) -> None:
    """Remove the places of our source files on this machine."""
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, GraphModule) else ():
            node.meta.pop("stack_trace", None)
