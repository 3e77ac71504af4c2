"""Format `onnx`: models of ONNX for onnxruntime and its like; the loop is one node, `Scan`."""

import json
import logging
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator, List

import onnxscript  # noqa: F401  (torch needs it, and asks for it late)
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass

from ..trained import Trained
from . import files
from .forms import Form, write

OPSET = 20  # since ONNX 1.15


def export(model: Trained, output: Path) -> List[Path]:
    """Write a model for whole sequences, and one for a single step; the files.

    The metadata of the latter have the initial state, as JSON.
    """
    return write(model, files("onnx", output), _content)


def _content(form: Form) -> bytes:
    with _quiet():
        program = torch.onnx.export(
            form,
            form.inputs,
            dynamic_shapes=form.axes,
            input_names=form.names,
            output_names=["output", *(f"{part}_n" for part in form.plain.parts)],
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
        assert program is not None
        ClearMetadataAndDocStringPass()(program.model)  # among them places of our source files
    for name, start in form.named_buffers(recurse=False):
        program.model.metadata_props[name] = json.dumps(start.tolist())
    return program.model_proto.SerializeToString()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's warnings of packages that it could export, and a line for every node."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
