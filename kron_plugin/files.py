"""Files that get their name only when they are complete."""

import fcntl
import os
import re
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import get_ident
from typing import Iterator


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A temporary path to write to; at the end it is renamed to `path`, or removed after an error.

    It also removes unfinished files of killed processes in the same folder.
    """
    remove_abandoned(path.parent)
    # Each process and thread writes its own file, even if they make the same one at once.
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.{get_ident()}.part")
    mark = _create_locked(unfinished)
    try:
        yield unfinished
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())  # else a crash may leave the name with half the content
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
        os.close(mark)


def remove_abandoned(folder: Path) -> None:
    """Remove the unfinished files of dead processes in a folder.

    A writer locks its file, and the kernel releases the lock when the process ends in any way.
    Process numbers are no help: they are reused, and every machine has its own.
    """
    for unfinished in filter(_is_ours, folder.glob(".*.part")):
        with suppress(OSError):  # locked, or gone by now, or a file system without locks
            file = os.open(unfinished, os.O_RDWR)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if is_at(file, unfinished):
                    unfinished.unlink()
            finally:
                os.close(file)


def _is_ours(path: Path) -> bool:
    return bool(re.fullmatch(r"\..+\.\d+\.\d+\.part", path.name))


def _create_locked(path: Path) -> int:
    """A descriptor of a new file, which is locked as long as the descriptor is open."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        with suppress(OSError):  # without locks nobody removes the file
            fcntl.flock(file, fcntl.LOCK_EX)
        if is_at(file, path):
            return file
        os.close(file)  # another process removed it before it was locked


def is_at(file: int, path: Path) -> bool:
    """Whether an open file is the file at this path."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file), os.stat(path))
    return False
