"""Models of ONNX: equal to the model under onnxruntime, with one loop for every length."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from kron_plugin.export import exporter

from ..conftest import ROOT
from .cases import EXPORTED, assert_close, inputs, model_of

pytestmark = pytest.mark.xdist_group("onnx")  # its fixtures are made once


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Makes the model of a case and its two files, once."""
    folder, done = tmp_path_factory.mktemp("onnx"), {}

    def make(name):
        if name not in done:
            model = model_of(*EXPORTED[name])
            done[name] = model, exporter("onnx")(model, folder / f"{name}.onnx")
        return done[name]

    return make


def session(file):
    """A function from tensors to tensors, and the metadata."""
    opened = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    names = [one.name for one in opened.get_inputs()]

    def call(*arguments):
        given = dict(zip(names, (argument.numpy() for argument in arguments), strict=True))
        return [torch.from_numpy(output) for output in opened.run(None, given)]

    return call, opened.get_modelmeta().custom_metadata_map


@pytest.mark.parametrize("name", EXPORTED)
def test_outputs_and_states_are_those_of_the_model(made, name):
    model, (whole_file, step_file) = made(name)
    whole, _ = session(whole_file)
    step, metadata = session(step_file)
    starts = [np.array(json.loads(start), np.float32) for start in metadata.values()]
    for batch, steps in ((1, 1), (3, 9), (2, 30)):
        x = inputs(model, batch, steps)
        output, *last = whole(x)
        assert_close(output, model(x))
        expected = model.cell.run(x.transpose(0, 1))[1]
        state, outputs = [torch.from_numpy(start.repeat(batch, 1)) for start in starts], []
        for x_t in x.unbind(1):
            one, *state = step(x_t, *state)
            outputs.append(one)
        assert_close(torch.stack(outputs, 1) if model.task.spec.per_step else one, output)
        for by_step, by_whole, of_model in zip(state, last, expected, strict=True):
            assert_close(by_whole, of_model)
            assert_close(by_step, by_whole)


def products(graph):
    """How many matrices a graph multiplies by."""
    return sum(node.op_type in ("MatMul", "Gemm") for node in graph.node)


@pytest.mark.parametrize("name", EXPORTED)
def test_the_loop_is_one_node_and_what_it_reads_has_names(made, name):
    model, files = made(name)
    whole, step = map(onnx.load, files)
    onnx.checker.check_model(whole, full_check=True)
    onnx.checker.check_model(step, full_check=True)
    (loop,) = (node for node in whole.graph.node if node.op_type in ("Scan", "Loop"))
    (body,) = (attribute.g for attribute in loop.attribute if attribute.name == "body")
    alone, inside, outside = map(products, (step.graph, body, whole.graph))
    assert inside == alone - 1 >= 2
    assert outside == 1  # the readout
    (x,) = whole.graph.input
    axes = [axis.dim_param or axis.dim_value for axis in x.type.tensor_type.shape.dim]
    assert axes == (["B", "T"] if model.task.spec.tokens else ["B", "T", 3])
    assert [i.name for i in step.graph.input] == ["x", *model.cell.layers[0].recurrence.cell.state]
    for file in files:
        assert str(ROOT).encode() not in file.read_bytes()


def test_a_symbol_that_is_none_is_refused(made):
    whole, _ = session(made("kru")[1][0])
    with pytest.raises(Exception, match="indices element out of data bounds"):
        whole(torch.tensor([[0, 3]]))
