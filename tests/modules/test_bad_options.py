"""Every argument, factor string and length gives a working layer, or an error that names it."""

import inspect
from math import inf, nan, prod

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from kron_plugin.modules import CELLS, KRU, KRULSTM, Readout, parse_factors

from ..fuzz import ends_well, fuzzed

SIZES = st.integers(-2, 70) | st.sampled_from(
    [0, 2**31 + 1, 104729, 2**61 - 1, 10**18 + 9, 10**400]
)
WRITTEN = st.text("0123456789x, -_", max_size=12) | st.text(max_size=6)
PAIRED = st.lists(st.tuples(SIZES, SIZES) | SIZES, max_size=3)


@fuzzed
@given(WRITTEN | PAIRED | st.none(), SIZES)
@example("8,8", 64)
@example("2x4,4x2", 8)
@example("9" * 5000, 64)
@example("1" * 4000, int("1" * 4000))
@example(None, 10**18 + 9)  # a prime; trial division takes minutes
def test_factors(spec, hidden_size):
    sizes = ends_well(parse_factors, spec, hidden_size)
    if sizes is not None:
        assert prod(p for p, _ in sizes) == prod(q for _, q in sizes) == hidden_size


@fuzzed
@given(
    input_size=SIZES,
    hidden_size=SIZES,
    factors=WRITTEN | st.none(),
    options=st.fixed_dictionaries(
        {},
        optional={
            "complex": st.booleans(),
            "activation": st.sampled_from(["modrelu", "tanh", "identity", "relu", ""]),
            "backend": st.sampled_from(["auto", "reference", "gpu"]),
            "checkpoint_every": st.integers(-1, 9),
            "angle": st.none() | st.floats(),
        },
    ),
)
def test_layers(input_size, hidden_size, factors, options):
    layer = ends_well(lambda: KRU(input_size, hidden_size, factors=factors, **options))
    if layer is not None:
        output, last = layer(torch.randn(3, 2, input_size))
        assert torch.equal(output[-1], last[0])
        assert output.isfinite().all()


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_lengths(backend):
    layer = KRU(2, 4, backend=backend)
    x = torch.randn(3, 2, 2)
    number = st.integers(-1, 5) | st.sampled_from([2**62, -(2**62), 1.5, nan, inf, True])

    @fuzzed
    @given(st.lists(number, max_size=3))
    @example([1, 3])
    @example([1.5, 3.0])
    def check(lengths):
        result = ends_well(layer, x, None, torch.tensor(lengths), says="lengths")
        if result is not None:
            for row, length in enumerate(lengths):
                alone, _ = layer(x[: int(length), row : row + 1])
                assert torch.allclose(result[1][0, row], alone[-1, 0], atol=1e-6)
                assert int(length) == length

    check()


NO_NUMBERS = (8.0, "8", None, [8], True, 8j)
WRONG = {  # values of a wrong type or out of range, for every argument
    "input_size": (*NO_NUMBERS, 0, -1, 2**40),
    "hidden_size": (*NO_NUMBERS, 0, -1, 2**40),
    "factors": ("3", "a", 2.5, 3, (4.0, 2), {}, object()),
    "num_layers": (*NO_NUMBERS, 0, -1),
    "bias": (None, 2, "True", [True]),
    "bidirectional": (None, 2, "True"),
    "dropout": (None, "0.5", True, [0.5], 0.5j, -0.1, 1.1, nan, inf),
    "complex": (None, 2, "True"),
    "activation": (None, 1, "relu", ["tanh"]),
    "unitary": (None, 1, "very", True, ["soft"]),
    "angle": ("0.1", True, [0.1], -0.1, 4, nan),
    "chrono": (8.0, "8", True, [8], 1, 0, -1),
    "batch_first": (None, 2, "True"),
    "backend": (None, 1, "gpu", ["cpu"]),
    "checkpoint_every": (*NO_NUMBERS, 0, -1),
    "check_finite": (None, 2, "True"),
    "device": ("gpu", 0.5, [], "cuda:x"),
    "dtype": (int, "float32", torch.int32, torch.complex64, torch.bool),
    "output_size": (*NO_NUMBERS, 0, -1),
    "reads": (None, 1, "phases", ["parts"]),
    "directions": (*NO_NUMBERS, 0, -1),
}


@pytest.mark.parametrize("layer", [*CELLS.values(), Readout])
def test_every_argument_of_a_wrong_type_or_range_is_named(layer):
    right = {"input_size": 4, "output_size": 4} if layer is Readout else {}
    right = right or {"input_size": 4, "hidden_size": 8}
    names = inspect.signature(layer).parameters.keys() - {"unnamed"}
    for name in names:
        for value in WRONG[name]:
            with pytest.raises((TypeError, ValueError)) as raised:
                layer(**{**right, name: value})
            message = str(raised.value)
            assert message.startswith(name), (name, value, message)
            assert "\n" not in message


@pytest.mark.parametrize("layer", CELLS.values())
def test_what_torch_lstm_takes_by_position_is_asked_for_by_name(layer):
    for unnamed, said in (((2,), "num_layers=2 or factors=2"), (("4,2", 1), "factors='4,2'")):
        with pytest.raises(TypeError, match=f"{layer.__name__}: .* by name; write {said} for"):
            layer(4, 8, *unnamed)
    with pytest.raises(TypeError, match="proj_size"):
        layer(4, 8, proj_size=2)


def test_biases_that_are_needed_are_not_left_out():
    with pytest.raises(ValueError, match="bias=False: activation='modrelu' is the identity"):
        KRU(4, 8, bias=False)
    with pytest.raises(ValueError, match="chrono=9: sets the biases that bias=False leaves out"):
        KRULSTM(4, 8, bias=False, chrono=9)
    for options in ({"activation": "identity"}, {"activation": "tanh", "complex": False}):
        layer = KRU(4, 8, bias=False, **options)
        assert not [name for name, _ in layer.named_parameters() if "bias" in name]
        layer(torch.randn(3, 2, 4))[0].sum().backward()
        assert all(p.grad is not None for p in layer.parameters())
