"""Bad input for the tests: damaged files, and a check that it ends as it should."""

import resource
import time
import traceback
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from .conftest import PACKAGE

# Every run has the same few examples. `ends_well` limits the processor time of each.
fuzzed = settings(
    derandomize=True,
    max_examples=40,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@st.composite
def damaged(draw, content: bytes) -> bytes:
    """The content with some bytes replaced, removed or inserted, or with its end cut off."""
    damaged = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(damaged)))
        damaged[at : at + draw(st.integers(0, 4))] = draw(st.binary(max_size=4))
    return bytes(damaged[: draw(st.none() | st.integers(0, len(damaged)))])


@st.composite
def swollen(draw, content: bytes, size: int = 1 << 17) -> bytes:
    """The content with a few of its bytes repeated very often; a small packed file can hold it."""
    begin = draw(st.integers(0, len(content) - 1))
    part = content[begin : begin + draw(st.integers(1, 32))]
    return content[:begin] + part * (size // len(part)) + content[begin + len(part) :]


def ends_well(function, *args, says=None):
    """Call it, within a second and 512 MiB: the result, or None if it ended in an error of ours.

    An error is ours if our code raised it as a ValueError; its message must contain `says`.
    """
    memory, started = _most_memory(), time.thread_time()
    result = error = None
    try:
        result = function(*args)
    except ValueError as raised:
        error = raised
    assert time.thread_time() - started < 1
    assert _most_memory() - memory < 512 << 10
    if error is not None:
        *_, origin = traceback.extract_tb(error.__traceback__)
        assert Path(origin.filename).is_relative_to(PACKAGE), "an error that names nothing"
        assert says is None or str(says) in str(error)
    return result


def _most_memory() -> int:
    """The peak memory of this process, in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


GONE = object()  # as a value: the key is left out
OTHERS = (GONE, None, -5, 2**40, 1.5, "x", [], {}, True)


def places(content, place=()):
    """The path of keys and indices to every value in nested dicts, lists and tuples."""
    items = ()
    if isinstance(content, dict):
        items = content.items()
    elif isinstance(content, (list, tuple)):
        items = enumerate(content)
    for key, value in items:
        yield (*place, key)
        yield from places(value, (*place, key))


def altered(content, place, value):
    """A copy of nested dicts, lists and tuples with another value in one place."""
    key, *rest = place
    copy = dict(content) if isinstance(content, dict) else list(content)
    if rest:
        copy[key] = altered(content[key], rest, value)
    elif value is GONE:
        del copy[key]
    else:
        copy[key] = value
    return tuple(copy) if isinstance(content, tuple) else copy
