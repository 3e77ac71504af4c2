"""Parameters in every place: in flat buffers, in shards, moved between calls, not yet allocated.
`torch.nn.LSTM` works with all of these."""

import importlib
import json

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode

from kron_plugin.modules import CELLS

cells = pytest.mark.parametrize("cell", CELLS.values())
UNITARY = pytest.mark.parametrize("unitary", ["soft", "hard"])


def make(cell, unitary, **options):
    return cell(3, 6, unitary=unitary, **options)


def everything(layer, x):
    """The results of everything that reads the parameters."""
    output, state = layer(x)
    values = [output, layer.unitary_penalty(), layer.unitary_deviation()]
    values += [one.singular_values() for one in layer.layers]
    return [*values, *(state if isinstance(state, tuple) else (state,))]


def gradients(values, parameters):
    loss = sum(value.square().sum() for value in values)
    return torch.autograd.grad(loss, list(parameters), allow_unused=True)


def odd_view(tensor):
    """The same numbers, at an odd place in a buffer."""
    return torch.cat([tensor.new_zeros(1), tensor.flatten()])[1:].view_as(tensor)


@cells
@UNITARY
@pytest.mark.parametrize("skew", [0, 1])
def test_views_of_one_flat_buffer(cell, unitary, skew):
    layer, x = make(cell, unitary).double(), torch.randn(4, 2, 3, dtype=torch.float64)
    expected = everything(layer, x)
    expected_gradients = gradients(expected, layer.parameters())
    vector = nn.utils.parameters_to_vector(layer.parameters()).detach()
    vector = torch.cat([vector.new_zeros(skew), vector])[skew:]
    nn.utils.vector_to_parameters(vector, layer.parameters())
    assert {p.storage_offset() % 2 for p in layer.factors} >= {skew}
    values = everything(layer, x)
    torch.testing.assert_close(values, expected)
    torch.testing.assert_close(gradients(values, layer.parameters()), expected_gradients)
    layer.reset_parameters()
    assert layer.unitary_deviation() < 1e-12


@cells
@UNITARY
def test_replicas_as_data_parallel_makes_them(cell, unitary, monkeypatch):
    """Their parameters are not leaves, but parts of one broadcast tensor."""
    replicate = importlib.import_module("torch.nn.parallel.replicate")
    monkeypatch.setattr(replicate, "_get_device_index", lambda device, optional: 0)
    monkeypatch.setattr(
        replicate,
        "_broadcast_coalesced_reshape",
        lambda tensors, devices, detach: [[odd_view(t) for t in tensors]],
    )
    layer, x = make(cell, unitary), torch.randn(4, 2, 3)
    (replica,) = replicate.replicate(layer, ["cpu"])
    expected, values = everything(layer, x), everything(replica, x)
    torch.testing.assert_close(values, expected)
    parameters = list(layer.parameters())
    torch.testing.assert_close(gradients(values, parameters), gradients(expected, parameters))


def offload(layer):
    """Like accelerate: parameters exist only while the module that owns them is called."""
    for module in list(layer.modules()):
        own = dict(module.named_parameters(recurse=False))
        if not own:
            continue

        def load(module, args, own=own):
            for name, parameter in own.items():
                setattr(module, name, nn.Parameter(parameter.detach().clone()))

        def unload(module, args, output, own=own):
            for name, parameter in own.items():
                setattr(module, name, nn.Parameter(parameter.to("meta")))

        unload(module, None, None)
        module.register_forward_pre_hook(load)
        module.register_forward_hook(unload)


def offload_by_accelerate(layer):
    pytest.importorskip("accelerate").cpu_offload(layer, execution_device="cpu")


@cells
@UNITARY
@pytest.mark.parametrize("move", [offload, offload_by_accelerate])
@torch.no_grad()
def test_parameters_that_are_there_in_calls_only(cell, unitary, move):
    layer, x = make(cell, unitary), torch.randn(4, 2, 3)
    expected = everything(layer, x)
    move(layer)
    assert {p.device.type for p in layer.parameters()} == {"meta"}
    torch.testing.assert_close(everything(layer, x), expected)


@cells
@UNITARY
def test_parameters_made_one_module_at_a_time(cell, unitary):
    """Like FSDP from the meta device: from the root down, each module makes its own."""
    layer = make(cell, unitary, device="meta")
    assert {t.device.type for t in layer.state_dict().values()} == {"meta"}
    for module in layer.modules():
        own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        if own:
            module.to_empty(device="cpu", recurse=False)
            for tensor in own:
                tensor.data.fill_(torch.nan)
            module.reset_parameters()
    assert all(tensor.isfinite().all() for tensor in everything(layer, torch.randn(4, 2, 3)))
    assert layer.unitary_deviation() < 1e-5


@cells
@UNITARY
@pytest.mark.parametrize("made_inside", [True, False])
def test_parameters_without_numbers(cell, unitary, made_inside):
    layer = make(cell, unitary)
    expected = [value.shape for value in everything(layer, torch.zeros(4, 2, 3))]
    with FakeTensorMode(allow_non_fake_inputs=not made_inside):
        layer = make(cell, unitary) if made_inside else layer
        x = torch.zeros(4, 2, 3)
        values = everything(layer, x)
        gradients(values, layer.parameters())
        layer(x, None, torch.tensor([4, 2]))
    assert [value.shape for value in values] == expected


@cells
def test_gradients_of_every_example_alone(cell):
    layer, x = make(cell, "soft").double(), torch.randn(4, 5, 3, dtype=torch.float64)

    def loss(parameters, x):
        output, _ = torch.func.functional_call(layer, parameters, (x.unsqueeze(1),))
        return output[-1].square().sum()

    parameters = {name: p.detach() for name, p in layer.named_parameters()}
    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 1))(parameters, x)
    for b in range(x.shape[1]):
        alone = torch.autograd.grad(
            loss(dict(layer.named_parameters()), x[:, b]), layer.parameters()
        )
        torch.testing.assert_close([each[name][b] for name in parameters], list(alone))


def test_shards_in_several_processes(server, tmp_path):
    """FSDP, one and two, and DistributedDataParallel, in two processes (sharded.py)."""
    outputs = [tmp_path / f"output_{rank}" for rank in range(2)]
    commands = [
        {
            "module": "sharded",
            "args": [str(rank), f"file://{tmp_path / 'meeting'}"],
            "cwd": str(tmp_path),
            "env": {},
            "output": str(output),
        }
        for rank, output in enumerate(outputs)
    ]
    print(json.dumps(commands), file=server.stdin, flush=True)
    statuses = json.loads(server.stdout.readline())
    assert statuses == [0, 0], "\n".join(output.read_text()[-3000:] for output in outputs)
