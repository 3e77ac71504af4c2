"""Progress as a bar on a terminal, as a few plain lines in a log, as nothing if it is soon over."""

import logging
import sys
import time
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
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
    """Have the toolkit keep --log-file open once; harmless to repeat.

    It opens the file again in every epoch, beside what it opened before: lines are written as often
    as there were epochs, and a run of a thousand is out of open files.
    """
    from fairseq.logging import progress_bar as bars

    make = bars.progress_bar
    if hasattr(make, "__wrapped__"):
        return

    @wraps(make)
    def progress_bar(*args, log_file=None, **kwargs):
        opened = [h for h in bars.logger.handlers if isinstance(h, logging.FileHandler)]
        for handler in opened if log_file is not None else ():
            if Path(handler.baseFilename) == Path(log_file).absolute():
                bars.logger.removeHandler(handler)
                handler.close()
        return make(*args, log_file=log_file, **kwargs)

    bars.progress_bar = progress_bar
