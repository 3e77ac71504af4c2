import logging

import pytest

from kron_plugin.modules import KRU, default_factors, parse_factors
from kron_plugin.ops import backends


@pytest.mark.parametrize(
    ("size", "expected"),
    [(512, [2] * 9), (411, [3, 137]), (137, [137]), (1, [1]), (60, [2, 2, 3, 5])],
)
def test_default_is_the_prime_factors(size, expected):
    assert default_factors(size) == tuple((p, p) for p in expected)


@pytest.mark.parametrize(
    ("spec", "size", "expected"),
    [
        ("16,32", 512, ((16, 16), (32, 32))),
        ((16, 32), 512, ((16, 16), (32, 32))),
        ("2x4,4x2", 8, ((2, 4), (4, 2))),
        (((2, 4), (4, 2)), 8, ((2, 4), (4, 2))),
        ("8", 8, ((8, 8),)),
        ("", 4, ((2, 2), (2, 2))),
    ],
)
def test_sizes_are_read(spec, size, expected):
    assert parse_factors(spec, size) == expected


@pytest.mark.parametrize(
    ("spec", "size", "message"),
    [
        ("16,30", 512, "multiply to 480, but hidden_size is 512; '2,2,2,2,2,2,2,2,2' or '16,32'"),
        ("2x4,4x4", 8, "multiply to 8 rows and 16 columns"),
        ("16,", 16, "'' is no size"),
        ("a", 16, "'a' is no size"),
        ("2x2x2", 8, "no size"),
        ("-2,-4", 8, "no size"),
        ((2.5,), 8, "no size"),
        (2.5, 8, "2.5 is no size"),
        (object(), 8, "no size"),
        (None, 0, "hidden_size=0"),
    ],
)
def test_what_is_wrong_with_sizes_is_said(spec, size, message):
    with pytest.raises(ValueError, match=message):
        parse_factors(spec, size)


@pytest.mark.parametrize(
    ("size", "large", "near", "small"),
    [
        (127, 127, 128, "2,2,2,2,2,2,2"),
        (411, 137, 405, "3,3,3,3,5"),
        (74, 37, 75, "3,5,5"),
        (8209, 8209, 8192, ",".join(["2"] * 13)),
    ],
)
def test_a_default_with_a_large_factor_is_told_once(size, large, near, small, caplog):
    backends.log_once.cache_clear()
    KRU(1, size, device="meta", num_layers=2)
    parse_factors("", size)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    said = record.getMessage()
    assert said.startswith(f"hidden_size={size}: ")
    assert f"a dense matrix of {large}x{large}; hidden_size={near} is the nearest" in said
    assert f"'{small}'" in said


@pytest.mark.parametrize(
    ("spec", "size"), [("127", 127), (411, 411), ("3,137", 411), (None, 62), (None, 4096)]
)
def test_chosen_and_small_factors_are_not_told(spec, size, caplog):
    backends.log_once.cache_clear()
    parse_factors(spec, size)
    assert not caplog.records
