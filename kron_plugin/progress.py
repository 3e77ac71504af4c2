"""Progress as a bar on a terminal, as a few plain lines in a log, as nothing if it is soon over."""

import logging
import sys
import time
from contextlib import contextmanager
from typing import Callable, Iterator

from tqdm import tqdm

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 5.0


@contextmanager
def progress(what: str, total: int, unit: str, done: int = 0) -> Iterator[Callable[[int], None]]:
    """A function to call with the units done since the last call.

    Args:
        total: how many units there are; 0 if unknown.
        done: how many were done before.
    """
    if sys.stderr.isatty():
        options = {"unit": unit, "unit_scale": True, "initial": done, "leave": False}
        with tqdm(desc=what, total=total or None, **options) as bar:
            yield bar.update
        return

    said = time.monotonic()

    def advance(units: int) -> None:
        nonlocal done, said
        done += units
        if total and time.monotonic() > said + SECONDS_BETWEEN_LINES:
            logger.info("%s: %d of %d %s", what, done, total, unit)
            said = time.monotonic()

    yield advance
