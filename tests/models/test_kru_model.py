import pytest
import torch
from fairseq.nan_detector import NanDetector

import kron_plugin

kron_plugin.register()

from kron_plugin.models.baseline import BASELINES, BaselineCell  # noqa: E402
from kron_plugin.models.cells import penalty_and_deviation  # noqa: E402
from kron_plugin.models.kru import KRUModel  # noqa: E402
from kron_plugin.models.options import KRUConfig, ModelSpec  # noqa: E402
from kron_plugin.modules import CELLS as LAYERS  # noqa: E402


class Task:
    def __init__(self, spec):
        self.spec = spec


CELLS = [*LAYERS, *BASELINES]


def build(spec, **options):
    return KRUModel.build_model(KRUConfig(**{"hidden_size": 8, **options}), Task(spec))


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("tokens", [True, False])
@pytest.mark.parametrize("per_step", [True, False])
def test_model_takes_the_shape_the_task_asks_for(cell, tokens, per_step):
    model = build(ModelSpec(5, 3, tokens, per_step), cell=cell)
    source = torch.randint(5, (2, 6)) if tokens else torch.randn(2, 6, 5)
    output = model(source, lengths=torch.tensor([6, 4]))
    assert output.shape == ((2, 6, 3) if per_step else (2, 3))


@pytest.mark.parametrize("cell", CELLS)
def test_padding_does_not_reach_the_answer(cell):
    model = build(ModelSpec(5, 3, tokens=False, per_step=False), cell=cell)
    source, lengths = torch.randn(2, 6, 5), torch.tensor([6, 4])
    alone = model(source[1:, :4])
    source[1, 4:] = 100
    torch.testing.assert_close(model(source, lengths)[1:], alone)


@pytest.mark.parametrize("cell", CELLS)
def test_both_directions_of_the_top_layer_are_read(cell):
    model = build(ModelSpec(5, 3, False, False), cell=cell, num_layers=2, bidirectional=True)
    source = torch.randn(2, 6, 5)
    output, _ = model.cell.run(source.transpose(0, 1))
    forwards, backwards = output.chunk(2, dim=-1)
    expected = model.readout(torch.cat([forwards[-1], backwards[0]], -1))
    torch.testing.assert_close(model(source), expected)


@pytest.mark.parametrize(("reads", "features"), [("parts", 16), ("moduli", 8), ("both", 24)])
@pytest.mark.parametrize("directions", [1, 2])
def test_what_is_read_from_the_state_can_be_chosen(reads, features, directions):
    spec, bidirectional = ModelSpec(5, 3, False, per_step=False), directions == 2
    model = build(spec, readout=reads, bidirectional=bidirectional)
    assert model.readout.weight.shape == (3, features * directions)
    assert model(torch.randn(2, 6, 5)).shape == (2, 3)


@pytest.mark.parametrize(
    ("options", "kind"),
    [({"kron_real": True}, "kru with --kron-real"), ({"cell": "lstm"}, "lstm")],
)
def test_real_states_have_no_moduli(options, kind):
    with pytest.raises(ValueError, match=f"--readout=moduli: the states of {kind} are not complex"):
        build(ModelSpec(5, 3, False, False), readout="moduli", **options)


def test_answers_at_every_step_must_not_see_later_ones():
    with pytest.raises(ValueError, match="--bidirectional: Task asks for an answer at every step"):
        build(ModelSpec(5, 3, True, True), bidirectional=True)


@pytest.mark.parametrize("cell", ["kru", "lstm"])
def test_a_silent_token_starts_with_no_input_vector(cell):
    model = build(ModelSpec(5, 3, True, True, silent_token=2), cell=cell)
    (weight,) = model.cell.input_weights()
    assert weight[2].eq(0).all()
    assert weight[1].ne(0).any()


def test_only_factors_are_penalised():
    kru = build(ModelSpec(5, 3, True, True))
    with torch.no_grad():
        kru.cell.factors[0].mul_(2)
    # W = 2Q: WᴴW − I = 3I for a 2x2 unitary Q, so ‖·‖² = 18
    assert torch.stack(penalty_and_deviation(kru)).tolist() == pytest.approx([18, 18**0.5])
    lstm = build(ModelSpec(5, 3, True, True), cell="lstm")
    assert penalty_and_deviation(lstm) == (0, 0)


@pytest.mark.parametrize("cell", ["kru_lstm", "rnn", "lstm", "gru"])
def test_symbols_start_as_an_embedding_would(cell):
    symbols = build(ModelSpec(50, 3, True, True), cell=cell, hidden_size=64)
    features = build(ModelSpec(50, 3, False, True), cell=cell, hidden_size=64)
    (of_symbols,), (of_features,) = symbols.cell.input_weights(), features.cell.input_weights()
    assert of_symbols.std().item() == pytest.approx(3**-0.5, rel=0.05)
    assert of_features.abs().max() <= 1 / 8


def test_chrono_init_is_that_of_every_gated_cell():
    spec = ModelSpec(5, 3, True, True)
    lstm = build(spec, cell="lstm", hidden_size=256, chrono_init=50).cell.rnn
    of_input, of_forget, *_ = (lstm.bias_ih_l0 + lstm.bias_hh_l0).chunk(4)
    gru = build(spec, cell="gru", hidden_size=256, chrono_init=50).cell.rnn
    of_reset, of_update, _ = (gru.bias_ih_l0 + gru.bias_hh_l0).chunk(3)
    kru_lstm = build(spec, cell="kru_lstm", hidden_size=256, chrono_init=50).cell
    for remember in (of_forget, of_update, kru_lstm.layers[0].bias[256:512]):
        steps = 1 + remember.exp()
        assert 2 <= steps.min() < 4
        assert 47 < steps.max() <= 50
    assert torch.equal(of_input, -of_forget)
    assert of_reset.abs().max() <= 1 / 16  # torch's initial range


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kron_factors": "2,3"}, "multiply to 6, but --hidden-size is 8"),
        ({"cell": "lstm", "kron_factors": "2,4"}, "the cell lstm has no factors"),
        ({"cell": "gru", "kron_real": True}, "the cell gru has no factors"),
        ({"cell": "rnn", "unitary": "soft"}, "the cell rnn has no factors"),
        ({"cell": "gru", "kron_backend": "cpu"}, "--kron-backend: the cell gru has no factors"),
        ({"encoder_layers": 3}, "--encoder-layers=3: is for the encoder and decoder of a transl"),
        ({"encoder_bidirectional": True}, "--encoder-bidirectional=True: is for the encoder and"),
        ({"adaptive_softmax_cutoff": [3]}, r"--adaptive-softmax-cutoff=\[3\]: is for the encoder"),
        ({"cell": "kru_lstm", "kron_activation": "tanh"}, "--kron-activation=tanh: the cell kru_"),
        ({"chrono_init": 9}, "--chrono-init=9: the cell kru has no gates"),
        ({"cell": "gru", "angle_init": 0.2}, "--angle-init=0.2: is for the cell kru, not gru"),
        ({"angle_init": 4.0}, "--angle-init=4.0: must be from 0 to π, in radians"),
        ({"cell": "lstm", "chrono_init": 1}, "--chrono-init=1: must be at least 2 steps"),
        ({"num_layers": 0}, "--num-layers=0: must be at least 1"),
    ],
)
def test_options_that_do_not_fit_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        build(ModelSpec(5, 3, True, True), **options)


def test_a_task_without_a_spec_is_told():
    with pytest.raises(ValueError, match="--arch kru: the task object neither says"):
        KRUModel.build_model(KRUConfig(), object())


@pytest.mark.parametrize("cell", CELLS)
def test_fairseq_finds_where_a_nan_comes_from(cell, caplog):
    """The detector looks at the first output of every module, forwards and backwards."""
    model = build(ModelSpec(5, 3, tokens=False, per_step=False), cell=cell)
    with torch.no_grad():
        next(model.cell.parameters()).fill_(float("nan"))
    with NanDetector(model):
        model(torch.randn(2, 4, 5)).sum().backward()
    assert "NaN detected in output of cell" in caplog.text


@pytest.mark.parametrize("cell", BASELINES)
def test_a_stream_of_torchs_layers_refuses_what_does_not_fit(cell):
    stream = BaselineCell(cell, 3, 4, num_layers=2).stream(2)
    x = torch.rand(2, 3)
    for wrong in (x.t(), x[0], x.numpy(), torch.zeros(3, dtype=torch.int64)):
        with pytest.raises(ValueError, match="x_t: "):
            stream(wrong)
    stream(x)
    first = stream.state
    for part in first if isinstance(first, tuple) else (first,):
        part.add_(1)
    after = stream(x)
    with pytest.raises(ValueError, match="state: has shape"):
        stream.state = torch.zeros(3) if cell != "lstm" else (torch.zeros(3),) * 2
    stream.reset()
    stream(x)
    assert torch.equal(stream(x), after)
    with pytest.raises(ValueError, match="batch_size=0"):
        stream.cell.stream(0)
