"""The plain form of a model is the model, step by step, for every cell and activation."""

import pytest
import torch

from kron_plugin.export import require_exportable
from kron_plugin.export.forms import Step
from kron_plugin.export.plain import SPLIT, Plain, merged
from kron_plugin.models.baseline import BaselineCell
from kron_plugin.modules import CELLS, KRU, Readout
from kron_plugin.ops import ACTIVATIONS, dense, modrelu
from kron_plugin.ops.activation import join, split
from kron_plugin.trained import Trained

from .cases import CASES, assert_close, inputs, model_of


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("tokens", [False, True])
def test_steps_are_those_of_the_model(case, tokens):
    model = model_of(case, tokens)
    plain = Plain(model)
    step, state = Step(plain), plain.initial_state(5)
    x, found = inputs(model, 5, 7), []
    for x_t in x.unbind(1):
        output, *state = step(x_t, *state)
        found.append(output)
    expected, last = model(x), model.cell.run(x.transpose(0, 1))[1]
    assert_close(torch.stack(found, dim=1), expected)
    for part, of_model in zip(state, last, strict=True):
        assert_close(part, of_model)


def test_every_cell_and_activation_has_a_case():
    layers = [model_of(case).cell for case in CASES]
    assert {type(cell) for cell in layers} == set(CELLS.values())
    kinds = {(cell.layers[0].complex, cell.layers[0].activation) for cell in layers}
    wanted = {(False, name) for name in ACTIVATIONS}
    wanted |= {(True, name) for name, row in ACTIVATIONS.items() if not row.is_real}
    assert wanted <= kinds


@pytest.mark.parametrize("value", [0.0, 1e-3, float("nan"), float("inf")])
def test_modrelu_of_what_is_no_ordinary_number(value):
    z, bias = torch.tensor([[value, 1.0, 0.0, value]]), torch.tensor([0.5, -0.25])
    found = SPLIT["modrelu"](z, bias)
    torch.testing.assert_close(found, split(modrelu(join(z), bias)), equal_nan=True)


@pytest.mark.parametrize(
    ("sizes", "counts"),
    [([2] * 9, [16, 16, 2]), ([20, 2, 3, 3], [20, 6, 3]), ([64, 64], [64, 64]), ([1, 1], [1])],
)
def test_neighbouring_factors_are_merged(sizes, counts):
    factors = [torch.randn(size, size, dtype=torch.complex64) for size in sizes]
    found = merged(factors)
    assert [len(factor) for factor in found] == counts
    if len(sizes) < 9:
        return
    torch.testing.assert_close(dense(found).to(torch.complex64), dense(factors))


def test_half_and_double_precision_are_exported_in_single():
    for dtype in (torch.bfloat16, torch.float64):
        model = model_of("modrelu").to(dtype)
        plain = Plain(model)
        x = inputs(model, 2)
        output, *state = Step(plain)(x, *plain.initial_state(2))
        assert {output.dtype, *(part.dtype for part in state)} == {torch.float32}
        assert_close(output, model.float()(x[:, None])[:, 0])


def test_what_cannot_be_exported_is_said():
    spec = model_of("modrelu").task
    ours = KRU(3, 4, bidirectional=True)
    both = Trained(ours, Readout(ours.output_size, 4, directions=2), spec)
    with pytest.raises(ValueError, match=r"its layers are bidirectional, so it has no single step"):
        require_exportable(both)
    for name in ("rnn", "lstm", "gru"):
        torchs = Trained(BaselineCell(name, 3, 4), Readout(4, 4), spec)
        with pytest.raises(ValueError, match=r"torch.export and torch.onnx export it"):
            require_exportable(torchs)
    require_exportable(model_of("modrelu"))
