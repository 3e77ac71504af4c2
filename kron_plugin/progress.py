"""Progress: a bar on a terminal, a few lines in a log, nothing for short work."""

import logging
import sys
import time
from contextlib import contextmanager
from typing import Iterator, Protocol

from tqdm import tqdm

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 5.0
LINES = 20  # at most, if the total is known


class Advance(Protocol):
    def __call__(self, units: int, **shown: str) -> None:
        """Report the units done since the last call; `shown` are names and values to show."""


@contextmanager
def progress(
    what: str, total: int, unit: str, done: int = 0, stays: bool = False
) -> Iterator[Advance]:
    """A function to call with the units done since the last call, and with values to show.

    Args:
        total: the number of units; 0 if unknown.
        done: units done before.
        stays: the bar remains on the terminal at the end.
    """
    if sys.stderr.isatty():
        scaled = unit == "bytes"  # 12.3M; but 600 updates, not 600.0
        options = {"unit": f" {unit}", "unit_scale": scaled, "initial": done, "leave": stays}
        with tqdm(desc=what, total=total or None, dynamic_ncols=True, **options) as bar:

            def move(units: int, **shown: str) -> None:
                bar.set_postfix_str(_listed(shown), refresh=False)
                bar.update(units)

            yield move
        return

    said, said_at = done, time.monotonic()

    def advance(units: int, **shown: str) -> None:
        nonlocal done, said, said_at
        done += units
        soon = time.monotonic() < said_at + SECONDS_BETWEEN_LINES or (done - said) * LINES < total
        if units and total and not soon:
            logger.info(
                "%s: %d of %d %s%s", what, done, total, unit, f", {_listed(shown)}" if shown else ""
            )
            said, said_at = done, time.monotonic()

    yield advance


def _listed(shown) -> str:
    return ", ".join(f"{name} {value}" for name, value in shown.items())
