"""Files that appear under their name only once they are whole."""

import os
from contextlib import contextmanager
from pathlib import Path
from threading import get_ident
from typing import Iterator


@contextmanager
def finished(path: Path) -> Iterator[Path]:
    """A path to write to; what was written becomes `path` at the end, or nothing does."""
    # Processes and threads that make the same file at the same time each write one of their own.
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.{get_ident()}.part")
    try:
        yield unfinished
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())  # else a crash of the machine may leave the name and half
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
