"""Files that appear under their name only once they are whole."""

import fcntl
import os
import re
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import get_ident
from typing import Iterator


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A path to write to; what was written becomes `path` at the end, or nothing does.

    What processes that were killed have left unfinished in the same folder is removed.
    """
    remove_abandoned(path.parent)
    # Processes and threads that make the same file at the same time each write one of their own.
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.{get_ident()}.part")
    mark = _create_locked(unfinished)
    try:
        yield unfinished
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())  # else a crash of the machine may leave the name and half
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
        os.close(mark)


def remove_abandoned(folder: Path) -> None:
    """Remove the unfinished files in a folder whose writers are dead.

    A writer holds a lock on its file, which the kernel releases when the process ends, however it
    does. Process numbers would not do: they are used again, and another machine has its own.
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
    """A new file, locked for as long as its descriptor is open."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        with suppress(OSError):  # a file system without locks: nobody will remove the file
            fcntl.flock(file, fcntl.LOCK_EX)
        if is_at(file, path):
            return file
        os.close(file)  # somebody found it before it was locked, and removed it


def is_at(file: int, path: Path) -> bool:
    """Whether an open file is the one that this path names."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file), os.stat(path))
    return False
