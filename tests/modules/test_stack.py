"""Layers, directions, packing and starts: KRU and KRULSTM against themselves and torch's LSTM."""

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from kron_plugin import modules
from kron_plugin.modules import KRU, KRULSTM

LENGTHS = [4, 1, 6, 4]
CELLS = list(modules.CELLS.values())


def make(cell, **options):
    return cell(3, 4, **options).double()


def parts(state):
    return state if isinstance(state, tuple) else (state,)


def batch():
    return torch.randn(6, len(LENGTHS), 3, dtype=torch.float64, requires_grad=True)


def loss(output, state):
    """A sum of every output and state, each with its own weight."""
    return sum((t * torch.arange(t.numel()).view_as(t).cos()).sum() for t in (output, *state))


def each_alone(layer, x, start):
    """Outputs padded with 0, and last states, from running the sequences one by one."""
    outputs, states = [], []
    for b, steps in enumerate(LENGTHS):
        own = tuple(part[:, b : b + 1].contiguous() for part in start)
        output, state = layer(x[:steps, b : b + 1], own if len(own) > 1 else own[0])
        outputs.append(output.squeeze(1))
        states.append(parts(state))
    padded = torch.nn.utils.rnn.pad_sequence(outputs)
    return padded, tuple(torch.cat(part, 1) for part in zip(*states, strict=True))


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(
    ("layers", "bidirectional"), [(1, False), (1, True), (2, False), (2, True)]
)
@pytest.mark.parametrize("packed", [False, True])
def test_a_batch_equals_its_sequences_alone(cell, layers, bidirectional, packed):
    layer = make(cell, num_layers=layers, bidirectional=bidirectional)
    x, lengths = batch(), torch.tensor(LENGTHS)
    rows = layers * (1 + bidirectional)
    _, shaped = layer(x)
    start = tuple(torch.randn_like(part, requires_grad=True) for part in parts(shaped))
    assert {part.shape[0] for part in start} == {rows}
    given = start if len(start) > 1 else start[0]
    if packed:
        output, state = layer(pack_padded_sequence(x, lengths, enforce_sorted=False), given)
        output, have = pad_packed_sequence(output)
        assert have.tolist() == LENGTHS
    else:
        output, state = layer(x, given, lengths)
        output = output * (torch.arange(6).unsqueeze(1) < lengths).unsqueeze(2)
    expected, expected_state = each_alone(layer, x, start)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(parts(state), expected_state)
    inputs = [x, *start, *(p for n, p in layer.named_parameters() if not n.endswith("h0"))]
    torch.testing.assert_close(
        torch.autograd.grad(loss(output, parts(state)), inputs),
        torch.autograd.grad(loss(expected, expected_state), inputs),
    )


@pytest.mark.parametrize("cell", CELLS)
def test_shapes_are_those_of_torch_lstm(cell):
    layer = make(cell, num_layers=3, bidirectional=True, batch_first=True)
    torch_lstm = torch.nn.LSTM(3, layer.layers[0].output_size, 3, True, True, bidirectional=True)
    x = batch().transpose(0, 1)
    output, state = layer(x)
    expected, expected_state = torch_lstm.double()(x)
    assert output.shape == expected.shape == (4, 6, layer.output_size)
    assert parts(state)[0].shape == expected_state[0].shape
    nothing, last = layer(x, need_output=False)
    assert nothing.numel() == 0
    torch.testing.assert_close(parts(last)[0], parts(state)[0])


@pytest.mark.parametrize("cell", CELLS)
def test_inside_a_model_a_state_is_always_a_tuple(cell):
    layer, x, lengths = make(cell, num_layers=2), batch(), torch.tensor(LENGTHS)
    output, state = layer.run(x, None, lengths)
    expected, last = layer(x, None, lengths)
    torch.testing.assert_close((output, state), (expected, parts(last)))
    torch.testing.assert_close(layer.run(x, state)[0], layer(x, last)[0])


def test_a_packed_output_has_the_order_of_torch_lstm():
    packed = pack_padded_sequence(batch(), torch.tensor(LENGTHS), enforce_sorted=False)
    have, _ = make(KRU)(packed)
    expected, _ = torch.nn.LSTM(3, 8).double()(packed)
    for name in ("batch_sizes", "sorted_indices", "unsorted_indices"):
        assert torch.equal(getattr(have, name), getattr(expected, name))


@pytest.mark.parametrize("cell", CELLS)
def test_symbols_may_be_packed_and_stacked(cell):
    layer = make(cell, num_layers=2, bidirectional=True)
    symbols, lengths = torch.randint(3, (6, 4)), torch.tensor(LENGTHS)
    one_hot = torch.nn.functional.one_hot(symbols, 3).double()
    packed = pack_padded_sequence(symbols, lengths, enforce_sorted=False)
    _, state = layer(packed)
    torch.testing.assert_close(state, layer(one_hot, None, lengths)[1])


@pytest.mark.parametrize("cell", CELLS)
def test_stepping_equals_running_through(cell):
    layer = make(cell, num_layers=2, dropout=0.5).eval()
    x = batch()
    output, expected = layer(x)
    state = None
    for x_t, output_t in zip(x, output, strict=True):
        state = layer.step(x_t, state)
        torch.testing.assert_close(parts(state)[0][-1], output_t)
    torch.testing.assert_close(state, expected)
    with pytest.raises(ValueError, match="step: a bidirectional layer"):
        make(cell, bidirectional=True).step(x[0])


@pytest.mark.parametrize("cell", CELLS)
@torch.no_grad()
def test_a_step_can_be_compiled_whole(cell):
    layer = make(cell, num_layers=2)
    x_t, (_, state) = batch()[0], layer(batch())
    step = torch.compile(layer.step, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(step(x_t, state), layer.step(x_t, state))


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("options", [{}, {"bidirectional": True}])
def test_one_graph_serves_all_sizes(cell, options):
    """For all times and batches, with lengths: each further graph would take seconds to compile."""
    layer, counter = make(cell, **options), CompileCounter()
    compiled = torch.compile(layer, backend=counter, dynamic=True, fullgraph=True)
    for steps, batch in [(5, 4), (7, 4), (9, 6)]:
        x, lengths = torch.randn(steps, batch, 3).double(), torch.randint(1, steps + 1, (batch,))
        torch.testing.assert_close(compiled(x, None, lengths), layer(x, None, lengths))
    assert counter.frame_count == 1


@pytest.mark.filterwarnings("ignore:dropout=0.5")
def test_dropout_falls_between_layers_in_training_only():
    one, two = make(KRU, dropout=0.5), make(KRU, num_layers=2, dropout=0.5)
    x = batch()
    torch.testing.assert_close(one(x), one(x))
    assert not torch.equal(two(x)[0], two(x)[0])
    two.dropout = 0.0
    torch.testing.assert_close(two(x), two(x))
    two.dropout = 0.5
    two.eval()
    torch.testing.assert_close(two(x), two(x))


@pytest.mark.parametrize("cell", CELLS)
def test_every_layer_counts_and_trains(cell):
    layer = make(cell, num_layers=2, bidirectional=True, unitary="soft")
    gates = layer.layers[0].recurrence.cell.products
    assert len(layer.factors) == 2 * 2 * 2 * gates
    assert layer.recurrent_parameters() == 2 * 2 * 2 * gates * (8 if cell is KRU else 4)
    with torch.no_grad():
        layer.layers[3].factors[0].mul_(2)
    assert layer.unitary_penalty().item() == pytest.approx(18)  # ‖3I‖² for a 2x2 matrix
    output, _ = layer(batch())
    (output.square().sum() + layer.unitary_penalty()).backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad.ne(0).any(), name


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda layer, x: layer(x, torch.zeros(3, 4, 8)), r"state: has shape \(3, 4, 8\)"),
        (lambda layer, x: layer(x[:, 0, 0]), r"x: has shape \(6,\), expected \(T, B, 3\)"),
        (lambda layer, x: layer(x, (torch.zeros(2, 4, 8),) * 2), "state: has 2 tensors; KRU has 1"),
        (
            lambda layer, x: layer(pack_padded_sequence(x, [6] * 4), None, torch.tensor(LENGTHS)),
            "lengths: a PackedSequence has its own",
        ),
    ],
)
def test_what_does_not_fit_is_said(call, message):
    with pytest.raises(ValueError, match=message):
        call(make(KRU, num_layers=2), batch())


@pytest.mark.parametrize("cell", CELLS)
def test_autocast_leaves_the_recurrence_its_own_precision(cell):
    layer, into = cell(3, 4, bidirectional=True, unitary="soft"), torch.nn.Linear(3, 3)
    x = into(torch.rand(5, 2, 3))
    _, start = layer(x)
    start = [part.detach() for part in parts(start)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        halved = into(torch.rand(5, 2, 3))
        assert halved.dtype == torch.bfloat16
        given = tuple(part.bfloat16() for part in start)
        output, state = layer(halved, given if len(given) > 1 else given[0])
        penalty, deviation = layer.unitary_penalty(), layer.unitary_deviation()
        (output.sum() + penalty).backward()
    assert {t.dtype for t in (output, *parts(state))} == {torch.float32}
    given = tuple(part.float() for part in given)
    expected, _ = layer(halved.float(), given if len(given) > 1 else given[0])
    assert torch.equal(output, expected)
    assert torch.equal(penalty, layer.unitary_penalty())
    assert penalty.item() < 1e-10
    assert torch.equal(deviation, layer.unitary_deviation())
    assert all(p.grad.isfinite().all() for p in (*layer.factors, into.weight))


def test_it_is_asked_as_a_layer_of_torch():
    layer = KRU(3, 4, factors=4, num_layers=2, bidirectional=True)
    assert (layer.num_layers, layer.bidirectional, layer.batch_first) == (2, True, False)
    x = torch.randn(6, 2, 3)
    given, tensor = layer(x, lengths=[6, 2])[1], layer(x, lengths=torch.tensor([6, 2]))[1]
    assert torch.equal(given, tensor)
    assert torch.equal(layer(x, [given])[1], layer(x, given)[1])
    assert KRULSTM(3, 4)(x, [torch.zeros(1, 2, 4)] * 2)[0].shape == (6, 2, 4)
    assert {p.dtype for p in KRU(3, 4, device="cpu", dtype=torch.float64).parameters()} == {
        torch.float64
    }
    assert layer(x[:, :0], lengths=[])[0].shape == (6, 0, 16)
    with pytest.raises(ValueError, match="factors='2' multiply to 2, but hidden_size is 4"):
        KRU(3, 4, factors=2)
    assert KRU(3, 4, factors=[np.int64(2), 2]).layers[0].factor_sizes == ((2, 2), (2, 2))
    with pytest.raises(IndexError):
        layer(torch.tensor([[3]]))


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_a_batch_of_no_sequences(cell, backend):
    """A worker may have no sequences at the end of an epoch. Gradients are zero, as in torch."""
    layer = make(cell, backend=backend)
    output, state = layer(torch.zeros(6, 0, 3, dtype=torch.float64))
    assert output.shape == (6, 0, layer.output_size)
    assert all(part.shape == (1, 0, layer.output_size) for part in parts(state))
    loss(output, parts(state)).backward()
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in layer.parameters())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_integers_of_any_type(cell, backend, dtype):
    """Lengths near the limit of their type, in longer sequences; and symbols."""
    layer = make(cell, backend=backend)
    symbols = torch.randint(3, (130 if dtype == torch.int8 else 270, 2))
    lengths = [100, 127 if dtype == torch.int8 else 255]
    have = layer(symbols.to(dtype), None, torch.tensor(lengths, dtype=dtype))[1]
    torch.testing.assert_close(have, layer(symbols, None, lengths)[1])


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_starts_as_single_does(cell, dtype):
    made = cell(3, 16, unitary="soft", dtype=dtype)
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        layers = [made, cell(3, 16, unitary="soft"), cell(3, 16, unitary="hard")]
    finally:
        torch.set_default_dtype(default)
    for layer in layers:
        assert {p.dtype for p in layer.parameters()} == {dtype}
        before = layer.layers[0].matrices()[0].detach().clone()
        layer.layers[0].reset_parameters()
        assert not torch.equal(layer.layers[0].matrices()[0], before)
        assert layer.unitary_deviation() < 0.02
        assert layer(torch.randn(5, 2, 3).to(dtype))[0].isfinite().all()


@pytest.mark.parametrize("cell", CELLS)
def test_other_ways_to_differentiate(cell):
    """torch.func and forward mode, which kernels do not support, give no gradient of zero."""
    layer, x = make(cell), torch.randn(4, 2, 3, dtype=torch.float64)

    def output(x):
        return layer(x)[0].square().sum()

    x.requires_grad_()
    (expected,) = torch.autograd.grad(output(x), x)
    x = x.detach()
    layer.requires_grad_(False)
    torch.testing.assert_close(torch.func.grad(output)(x), expected)
    torch.testing.assert_close(torch.func.jacfwd(output)(x), expected)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        tangent = torch.autograd.forward_ad.unpack_dual(output(dual)).tangent
    torch.testing.assert_close(tangent, expected.sum())
    each = torch.func.vmap(output, in_dims=1)(x.unsqueeze(2))
    torch.testing.assert_close(each.sum(), output(x))
    fused = make(cell, backend="cpu")
    with pytest.raises(RuntimeError, match=r"torch\.func .* want backend='reference'"):
        torch.func.grad(lambda x: fused(x)[0].sum())(x)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("form", ["features", "many features", "tokens"])
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_what_stands_beyond_a_length_is_not_read(cell, form, backend):
    """No result depends on it, in either direction and any layer."""
    inputs = 12 if form == "many features" else 3
    layer = cell(inputs, 4, num_layers=2, bidirectional=True, backend=backend).double()
    clean = torch.randint(3, (6, 4)) if form == "tokens" else torch.randn(6, 4, inputs).double()
    lengths = torch.tensor(LENGTHS)
    beyond = torch.arange(6).unsqueeze(1) >= lengths
    results = []
    for bad in [None, -1, 1000] if form == "tokens" else [None, float("nan"), float("inf")]:
        x = clean.clone()
        if bad is not None:
            x[beyond] = bad
        leaves = [x.requires_grad_()] if form != "tokens" else []
        output, state = layer(x, None, lengths)
        leaves += layer.parameters()
        gradients = torch.autograd.grad(loss(output, parts(state)), leaves)
        results.append([output, *parts(state), *gradients])
        assert form == "tokens" or gradients[0][beyond].eq(0).all()
    for have in results[1:]:
        assert all(map(torch.equal, have, results[0]))
