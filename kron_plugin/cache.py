"""The cache folder: compiled code and prepared data, which can be made again."""

import fcntl
import grp
import logging
import os
import pwd
import stat
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator, Optional

from .files import atomic_write, is_at

logger = logging.getLogger(__name__)


def cache_folder() -> Path:
    """`$KRON_CACHE_DIR`, else `kron-plugin` in `$XDG_CACHE_HOME` or `~/.cache`, as an absolute
    path. The folder may not exist yet.

    Several processes share the folder. So name a file by a hash of its sources, and write it
    through `kept`.

    Raises:
        OSError: the user has no home folder.
    """
    chosen = os.environ.get("KRON_CACHE_DIR")
    try:
        if chosen:
            return Path(chosen).expanduser().absolute()
        parent = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError as error:
        raise OSError(f"no place for the cache: {error} Set KRON_CACHE_DIR to a folder") from error
    return parent.absolute() / "kron-plugin"


@contextmanager
def kept(path: Path) -> Iterator[Path]:
    """Like `atomic_write` for a file in the cache; it also makes the folder.

    Raises:
        ValueError: the file cannot be written; the message says what to do.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as unfinished:
            yield unfinished
    except OSError as error:
        raise ValueError(
            f"{path.parent}: cannot keep files there: {error}; choose another folder by"
            " $KRON_CACHE_DIR"
        ) from error


def temporary_folder() -> Path:
    """The folder for compiled code if the cache folder cannot hold it."""
    return Path(tempfile.gettempdir()).absolute() / f"kron-plugin-{os.geteuid()}"


def made_for_code(folder: Path) -> Path:
    """The resolved path of a folder whose code is safe to run; it is made if it does not exist.

    Raises:
        OSError: it cannot be made, its files may not be executed, or somebody other than the user
            and root could put code there. The message names the folder.
    """
    folder = folder.resolve()
    for path in reversed([folder, *folder.parents]):
        if not path.exists():
            path.mkdir(mode=0o755, exist_ok=True)
    # The owners of parent folders are not checked: on clusters and in containers they are often
    # neither the user nor root. Groups that may write there are trusted, as in /usr/local.
    for above in folder.parents:
        if above.stat().st_mode & (stat.S_IWOTH | stat.S_ISVTX) == stat.S_IWOTH:
            raise PermissionError(f"{folder} lies below {above}, where everybody can write")
    distrust = why_not_trusted(folder.stat())
    if distrust:
        raise PermissionError(f"{folder} {distrust}")
    if os.statvfs(folder).f_flag & getattr(os, "ST_NOEXEC", 0):
        raise PermissionError(f"{folder} is mounted with noexec")
    return folder


def why_not_trusted(status: os.stat_result) -> Optional[str]:
    """Why somebody other than the user and root can change a file or folder, or None."""
    if status.st_uid not in (0, os.geteuid()):
        return f"belongs to {_user_name(status.st_uid)}"
    shared = status.st_mode & stat.S_IWGRP and not _is_private(status.st_gid, status.st_uid)
    if shared or status.st_mode & stat.S_IWOTH:
        return f"can be written by others (mode {stat.S_IMODE(status.st_mode):o})"
    return None


def _user_name(uid: int) -> str:
    try:
        return f"the user {pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"the user number {uid}"


def _is_private(gid: int, uid: int) -> bool:
    """Whether a group is a user's own, as many systems make one for each user."""
    try:
        user, group = pwd.getpwuid(uid), grp.getgrgid(gid)
    except KeyError:
        return False
    named_alike = group.gr_gid == user.pw_gid and group.gr_name == user.pw_name
    return named_alike and set(group.gr_mem) <= {user.pw_name}


@contextmanager
def one_process(path: Path, patience: float) -> Iterator[None]:
    """Let only one process at a time make `path`; the others wait.

    The lock ends with its process, however that ends. After `patience` seconds, or on a file
    system without locks, a process continues without the lock.

    Raises:
        OSError: nothing can be written beside `path`.
    """
    lock = path.with_name(f".{path.name}.lock")
    file = _lock(lock, time.monotonic() + patience)
    try:
        yield
    finally:
        if file is not None:
            lock.unlink(missing_ok=True)
            os.close(file)


def _lock(path: Path, deadline: float) -> Optional[int]:
    """A descriptor that locks the file as long as it is open, or None."""
    waiting = False
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if is_at(file, path):  # the process before has not removed it
                return file
        except BlockingIOError:
            if not waiting:
                logger.info("waiting for another process, which has locked %s", path)
            waiting = True
            time.sleep(0.05)
        except OSError as error:
            logger.info("%s cannot be locked: %s", path, error)
            path.unlink(missing_ok=True)
            deadline = 0
        os.close(file)
        if time.monotonic() > deadline:
            return None
