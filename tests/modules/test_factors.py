import pytest

from kron_plugin.modules import default_factors, parse_factors


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
        (None, 0, "hidden_size=0"),
    ],
)
def test_what_is_wrong_with_sizes_is_said(spec, size, message):
    with pytest.raises(ValueError, match=message):
        parse_factors(spec, size)
