"""The whole interface of `torch.nn.LSTM`: what is the same here, and what differs and why."""

import inspect
import pickle
from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence

from kron_plugin.modules import CELLS, KRU, KRULSTM

from .test_kru import copy_to_torch

SAME = "same"
TABLE = {  # every name of torch.nn.LSTM: SAME, or why it differs
    "input_size": SAME,
    "hidden_size": SAME,
    "num_layers": "by name only: factors could be meant as well",
    "bias": SAME,
    "batch_first": SAME,
    "dropout": SAME,
    "bidirectional": SAME,
    "proj_size": "absent: W maps N numbers to N; put a Linear behind the layer",
    "device": SAME,
    "dtype": SAME,
    "mode": "absent: it names one of torch's kernels",
    "input": "called x, the letter of the equations; give it by position",
    "hx": SAME,
    "all_weights": "the same lists, one a layer and direction, of our parameters",
    "weight_ih_l0": "`layers[0].weight`, transposed: a symbol picks a row",
    "weight_hh_l0": "`layers[0].factors`: W is never formed",
    "bias_ih_l0": "`layers[0].bias`, only one: torch has two for cuDNN, and adds them up",
    "bias_hh_l0": "see bias_ih_l0",
    "flatten_parameters": SAME,
    "reset_parameters": SAME,
    "check_input": "absent, as the five below: what is wrong is said in a ValueError that names the"
    " argument, where torch raises a RuntimeError",
    "check_hidden_size": "see check_input",
    "check_forward_args": "see check_input",
    "get_expected_hidden_size": "see check_input",
    "get_expected_cell_size": "see check_input",
    "permute_hidden": "see check_input",
}
FURTHER = {  # differences without a name in torch, and why; the calls below are the same
    "integers: symbols pick rows of the weights, and (T,) of them is one sequence": lambda: (
        KRULSTM(3, 4)(torch.tensor([2, 0]))[0].shape == (2, 4)
    ),
    "lengths and need_output, for batches without packing them, and step, for streams": lambda: (
        {"lengths", "need_output"} <= set(inspect.signature(KRU.forward).parameters)
        and KRU(3, 4).step(torch.zeros(2, 3)).shape == (1, 2, 8)
    ),
    "KRU's output has output_size numbers, 2N for complex factors": lambda: (
        KRU(3, 4)(torch.zeros(5, 2, 3))[0].shape[-1] == KRU(3, 4).output_size == 8
    ),
    "KRU learns its start: modReLU has no direction at 0": lambda: isinstance(
        KRU(3, 4).layers[0].h0, nn.Parameter
    ),
    "KRULSTM remembers at first: the biases of forget gates start at 1": lambda: (
        KRULSTM(3, 4).layers[0].bias[4:8].eq(1).all()
    ),
}
OPTIONS = [
    {},
    {"num_layers": 2, "bidirectional": True},
    {"batch_first": True},
    {"num_layers": 2, "dropout": 0.5, "bias": False},
]
X = torch.linspace(-1, 1, 5 * 4 * 3, dtype=torch.float64).view(5, 4, 3).cos()


def pair(**options):
    """KRULSTM with one factor a gate, and torch's LSTM with the same weights."""
    ours = KRULSTM(3, 4, factors=4, **options).double().eval()
    theirs = nn.LSTM(3, 4, **options).double().eval()
    for k, layer in enumerate(ours.layers):
        row, reverse = divmod(k, ours.directions)
        copy_to_torch(layer, theirs, f"l{row}" + "_reverse" * reverse)
    return ours, theirs


def test_the_table_names_everything():
    names = set(inspect.signature(nn.LSTM.__base__.__init__).parameters) - {"self"}
    names |= set(inspect.signature(nn.LSTM.forward).parameters) - {"self"}
    names |= {name for name in dir(nn.LSTM(3, 4)) if name[0] != "_"} - set(dir(nn.Module()))
    assert names == TABLE.keys()
    ours = set(inspect.signature(KRULSTM).parameters) | set(dir(KRULSTM(3, 4)))
    ours |= set(inspect.signature(KRULSTM.forward).parameters)
    assert {name for name in names if TABLE[name] == SAME} <= ours


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", [name for name, why in TABLE.items() if why == SAME])
def test_names_that_are_the_same(name, options):
    ours, theirs = pair(**options)
    if not hasattr(theirs, name):  # arguments only
        made = [cell(3, 4, device="meta", dtype=torch.float16) for cell in (KRULSTM, KRU, nn.LSTM)]
        places = {(p.device.type, p.dtype) for cell in made for p in cell.parameters()}
        assert places == {("meta", torch.float16)}
    elif callable(getattr(theirs, name)):
        assert getattr(ours, name)() is getattr(theirs, name)() is None
    else:
        assert getattr(ours, name) == getattr(theirs, name)


@pytest.mark.parametrize("holds", FURTHER.values(), ids=FURTHER.keys())
def test_what_differs_besides(holds):
    assert holds()


def state(layer, *batch):
    rows = layer.num_layers * (2 if layer.bidirectional else 1)
    h = torch.linspace(0, 1, rows * 4 * (batch or (1,))[0], dtype=torch.float64)
    h = h.view(rows, *batch, 4)
    return h, h.sin()


def parts(layer, x=X):
    """A batch x in the layer's order of axes."""
    return x.transpose(0, 1) if layer.batch_first else x


CALLS = {
    "batch": lambda m: m(parts(m)),
    "batch, state": lambda m: m(parts(m), state(m, 4)),
    "batch, hx": lambda m: m(parts(m), hx=state(m, 4)),
    "one sequence": lambda m: m(X[:, 0]),
    "one sequence, state": lambda m: m(X[:, 0], state(m)),
    "packed, sorted": lambda m: m(pack_padded_sequence(X, [5, 4, 2, 1]), state(m, 4)),
    "packed, not sorted": lambda m: m(
        pack_sequence([X[:2, 0], X[:5, 1], X[:1, 2], X[:3, 3]], enforce_sorted=False), state(m, 4)
    ),
    "no sequences": lambda m: m(parts(m, X[:, :0])),
    "deepcopy": lambda m: deepcopy(m)(parts(m)),
    "pickle": lambda m: pickle.loads(pickle.dumps(m))(parts(m)),
    "to": lambda m: m.to("meta").to(torch.float16),
    "extra_repr": lambda m: m.extra_repr(),
    "all_weights": lambda m: (
        len(m.all_weights),
        {id(p) for own in m.all_weights for p in own} == {id(p) for p in m.parameters()},
    ),
}


def plain(value):
    """Tensors and other comparable values."""
    if isinstance(value, PackedSequence):
        return tuple(value)
    if isinstance(value, nn.Module):
        return sorted({(str(p.dtype), str(p.device)) for p in value.parameters()})
    return tuple(map(plain, value)) if isinstance(value, tuple) else value


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_calls_that_are_the_same(call, options):
    ours, theirs = (plain(call(layer)) for layer in pair(**options))
    if isinstance(theirs, tuple) and isinstance(theirs[0], torch.Tensor | tuple):
        torch.testing.assert_close(ours, theirs)
    else:
        assert ours == theirs


WRONG_CALLS = [
    (lambda m: m(X[None]), r"x: has shape \(1, 5, 4, 3\), expected \(T, B, 3\) or \(T, 3\)"),
    (lambda m: m(X[..., :2]), r"x: has shape \(5, 4, 2\), expected \(T, B, 3\)"),
    (lambda m: m(X[0, 0]), r"x: has shape \(3,\)"),
    (lambda m: m(X[:0]), "x needs at least one step"),
    (lambda m: m(X.float()), "x has another type than h0, torch.float32 and not torch.float64"),
    (lambda m: m(X, state(m, 3)), r"state: has shape \(1, 3, 4\), expected \(1, 4, 4\)"),
    (lambda m: m(X, state(m)), r"state: has shape \(1, 4\), expected \(1, 4, 4\)"),
    (lambda m: m(X[:, 0], state(m, 1)), r"state: has shape \(1, 1, 4\), expected \(1, 4\)"),
    (lambda m: m(X, (state(m, 4)[0], 3)), "state: must be a tensor or several, not int"),
    (lambda m: m(X.tolist()), "x: must be a tensor, not list"),
]


@pytest.mark.parametrize(("call", "message"), WRONG_CALLS)
def test_calls_that_both_refuse(call, message):
    ours, theirs = pair()
    with pytest.raises((RuntimeError, ValueError, AttributeError, TypeError)):
        call(theirs)
    with pytest.raises(ValueError, match=message):
        call(ours)


@pytest.mark.parametrize("cell", CELLS.values())
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m(X, m(X)[1], hx=m(X)[1]), "hx: is another name of state; give one of them"),
        (lambda m: m(X[:, 0], None, torch.tensor([5])), "lengths: x has no axis B"),
        (lambda m: torch.jit.script(m), "torch.jit.script cannot read KRU"),
        (lambda m: torch.jit.script(nn.Sequential(m)), "torch.jit.script cannot read KRU"),
    ],
)
def test_calls_that_torch_does_not_have(cell, call, message):
    with pytest.raises((ValueError, NotImplementedError), match=message):
        call(cell(3, 4).double())


@pytest.mark.parametrize("cell", CELLS.values())
@pytest.mark.parametrize("batch_first", [False, True])
def test_one_sequence_needs_no_axis_for_the_batch(cell, batch_first):
    layer = cell(3, 4, num_layers=2, batch_first=batch_first).double()
    symbols = torch.tensor([2, 0, 1, 1])
    for x in (X[:, 0], symbols):
        batch = x.unsqueeze(0 if batch_first else 1)
        _, start = layer(batch)
        start = start if isinstance(start, tuple) else (start,)
        alone = tuple(h.squeeze(1) for h in start)
        alone, start = (alone, start) if len(start) > 1 else (alone[0], start[0])
        have, want = layer(x, alone), layer(batch, start)
        torch.testing.assert_close(have[0], want[0].squeeze(0 if batch_first else 1))
        torch.testing.assert_close(layer(x, alone, need_output=False)[1], have[1])
        stepped = alone
        for x_t in x:
            stepped = layer.step(x_t, stepped)
        torch.testing.assert_close(stepped, have[1])
        last = stepped[0] if isinstance(stepped, tuple) else stepped
        torch.testing.assert_close(last[-1], have[0][-1])


def test_reset_parameters_draws_all_that_is_random():
    for layer in (
        KRU(3, 8, num_layers=2, bidirectional=True),
        KRULSTM(3, 8),
        KRU(3, 8, unitary="hard"),
    ):
        before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
        layer.reset_parameters()
        same = {name for name, t in layer.state_dict().items() if torch.equal(t, before[name])}
        constant = "bias" if isinstance(layer, KRULSTM) else "factors"
        assert all(constant in name for name in same), same
        assert layer.unitary_deviation() < 1e-5


@pytest.mark.parametrize("cell", [KRU, KRULSTM, nn.LSTM])
def test_dropout_that_falls_nowhere_is_warned_of(cell):
    with pytest.warns(UserWarning, match=r"dropout.*num_layers"):
        cell(3, 4, dropout=0.5)


def trained(layer, x):
    """The result of a call and all gradients."""
    output, last = layer(x)
    return output, last, torch.autograd.grad(output.square().sum(), list(layer.parameters()))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("cell", CELLS.values())
@pytest.mark.parametrize(("unitary", "with_gradients"), [("soft", True), ("hard", False)])
def test_torch_jit_trace(cell, unitary, with_gradients):
    """The recorded program works for other numbers of steps and sequences, and can be trained."""
    options = {"bidirectional": True} if unitary == "soft" else {"checkpoint_every": 2}
    layer = cell(3, 4, unitary=unitary, **options).double()
    with torch.set_grad_enabled(with_gradients):
        graph = torch.jit.trace(layer, X[:3, :2])
    torch.testing.assert_close(trained(graph, X), trained(layer, X))
    with torch.no_grad():
        _, start = layer(X)
    graph = torch.jit.trace(layer, (X, start, torch.tensor([1, 5, 3, 5])))
    given = (2 * X, start, torch.tensor([5, 2, 4, 1]))
    torch.testing.assert_close(graph(*given), layer(*given))
