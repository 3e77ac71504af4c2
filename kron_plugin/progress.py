"""Progress as a bar on a terminal, as a few plain lines in a log, as nothing if it is soon over."""

import logging
import os
import sys
import time
from contextlib import contextmanager
from functools import wraps
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


def write_lines_once() -> None:
    """Have the toolkit close --log-file before it opens it again; harmless to repeat.

    It opens the file anew in every epoch, beside what it opened before: each line is written once
    for every epoch so far, and a run of some thousand epochs runs out of file descriptors.
    """
    from fairseq.logging import progress_bar as bars

    make = bars.progress_bar
    if hasattr(make, "__wrapped__"):
        return

    @wraps(make)
    def progress_bar(iterator, log_format=None, log_interval=100, log_file=None, **kwargs):
        opened = [h for h in bars.logger.handlers if isinstance(h, logging.FileHandler)]
        for handler in opened if log_file is not None else ():
            if handler.baseFilename == os.path.abspath(log_file):
                bars.logger.removeHandler(handler)
                handler.close()
        return make(iterator, log_format, log_interval, log_file, **kwargs)

    bars.progress_bar = progress_bar
