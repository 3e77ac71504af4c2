"""Factor sizes: how they are read, chosen and checked."""

from itertools import islice
from math import isqrt, prod
from typing import Any, List, Sequence, Tuple, Union

from ..ops.backends import log_once
from .arguments import whole

MAX_SIZE = 1 << 31  # numbers in a state or in one allocation: 8 GiB in single precision
LARGE = 32  # rows; a default factor with more is reported
SMALL = (2, 3, 5, 7)  # primes of the recommended sizes

# N is at most 2^31: at most 31 factors have more than one row, and 31 more than one column.
MAX_FACTORS = 64

FactorSizes = Tuple[Tuple[int, int], ...]
FactorSpec = Union[None, str, int, Sequence[Union[int, Sequence[int]]]]


def default_factors(hidden_size: int) -> FactorSizes:
    """Square factors, one for each prime factor of N: 2x2 for a power of two."""
    return tuple((p, p) for p in _prime_factors(hidden_size))


def parse_factors(spec: FactorSpec, hidden_size: int) -> FactorSizes:
    """The sizes (P_f, Q_f) in `spec`, checked against the hidden size N.

    Args:
        spec: None for the default; a string such as "16,32" or "2x4,4x2"; a sequence of sizes such
            as (16, 32) or ((2, 4), (4, 2)); or one size.

    Raises:
        ValueError: not sizes, or their products are not N; the message suggests sizes that fit.
        TypeError: the hidden size is not a whole number.
    """
    hidden_size = whole("hidden_size", hidden_size)
    if hidden_size > MAX_SIZE:
        raise ValueError(f"hidden_size: must be at most {MAX_SIZE}")
    if spec is None or (isinstance(spec, str) and not spec):
        sizes = _allocatable(default_factors(hidden_size))
        _tell_large(sizes, hidden_size)
        return sizes
    pieces = _pieces(spec)
    if len(pieces) > MAX_FACTORS:
        raise ValueError(f"factors: more than {MAX_FACTORS} make no sense")
    sizes = tuple(_one_size(piece, spec) for piece in pieces)
    rows, columns = prod(p for p, _ in sizes), prod(q for _, q in sizes)
    if rows != hidden_size or columns != hidden_size:
        have = f"{rows}" if rows == columns else f"{rows} rows and {columns} columns"
        raise ValueError(
            f"factors={format_factors(sizes)!r} multiply to {have}, but hidden_size is"
            f" {hidden_size}; {' or '.join(map(repr, _suggestions(hidden_size)))} would fit"
        )
    return _allocatable(sizes)


def _pieces(spec: Any) -> Sequence[Any]:
    if isinstance(spec, str):
        return spec.split(",")
    if not hasattr(spec, "__iter__") or getattr(spec, "ndim", 1) == 0:  # a tensor of one number
        return [spec]
    return list(islice(spec, MAX_FACTORS + 1))


def _tell_large(sizes: FactorSizes, hidden_size: int) -> None:
    """Report a large default factor once: users need not know that factors follow the primes."""
    p, _ = max(sizes)
    if p <= LARGE:
        return
    near = min(_small_products(2 * hidden_size), key=lambda size: abs(size - hidden_size))
    log_once(
        f"hidden_size={hidden_size}: the default factors {format_factors(sizes)!r} hold a dense"
        f" matrix of {p}x{p}; hidden_size={near} is the nearest with small factors,"
        f" {format_factors(default_factors(near))!r}. Give factors to choose them yourself"
    )


def _small_products(most: int) -> List[int]:
    """All numbers up to `most` whose prime factors are SMALL."""
    numbers = [1]
    for prime in SMALL:
        for number in numbers:  # the loop appends to this list
            if number * prime <= most:
                numbers.append(number * prime)
    return numbers


def _allocatable(sizes: FactorSizes) -> FactorSizes:
    p, q = max(sizes, key=prod)
    if p * q > MAX_SIZE:
        raise ValueError(
            f"factors={format_factors(sizes)!r}: one of {p}x{q} is too large; choose smaller ones,"
            " and a hidden_size of small primes"
        )
    return sizes


def format_factors(sizes: FactorSizes) -> str:
    """The string that `parse_factors` reads back: "16,32", "2x4,4x2"."""
    return ",".join(str(p) if p == q else f"{p}x{q}" for p, q in sizes)


def _one_size(piece: Any, spec: FactorSpec) -> Tuple[int, int]:
    try:
        if isinstance(piece, str):
            numbers = [int(s) for s in piece.split("x")]
        else:
            numbers = [int(piece)] if _is_integer(piece) else [int(s) for s in piece]
        p, q = numbers * 2 if len(numbers) == 1 else numbers
    except (TypeError, ValueError):
        p = q = 0
    if p < 1 or q < 1:
        raise ValueError(
            f"factors={spec!r}: {piece!r} is no size; write positive sizes as '16,32' for square"
            " factors or '2x4,4x2' for rectangular ones"
        )
    return p, q


def _is_integer(value: object) -> bool:
    return hasattr(value, "__index__")


def _prime_factors(n: int) -> List[int]:
    primes, p = [], 2
    while n > 1:
        while n % p == 0:
            primes.append(p)
            n //= p
        p = p + 1 if p * p <= n else n
    return primes or [1]


def _suggestions(n: int) -> List[str]:
    """The default factors, and the pair of factors closest in size."""
    small = next(d for d in range(isqrt(n), 0, -1) if n % d == 0)
    pair = f"{small},{n // small}" if small > 1 else str(n)
    return list(dict.fromkeys([format_factors(default_factors(n)), pair]))
