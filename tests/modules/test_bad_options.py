"""Sizes, factor strings and lengths: each gives a layer that works, or an error that names it."""

from math import inf, nan, prod

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from kron_plugin.modules import KRU, parse_factors

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
@example(None, 10**18 + 9)  # a prime: to find that out by division takes minutes
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
    layer = ends_well(lambda: KRU(input_size, hidden_size, factors, **options))
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
