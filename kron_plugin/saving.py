"""Saves checkpoints completely or not at all, and only one training at a time into a folder."""

import fcntl
import logging
import os
import socket
from contextlib import suppress
from functools import wraps
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Callable, Dict, Optional, TextIO

import torch

from .checkpoints import refusal
from .files import atomic_write

LOCK = ".training"  # a file in the folder that a training saves into
logger = logging.getLogger("fairseq_cli.train")  # fairseq's logger, which writes into --log-file
_held: Dict[Path, TextIO] = {}  # open as long as this process lives


def save(content: Any, path: Path) -> None:
    """Write a checkpoint that `kron_plugin.checkpoints.load` can read.

    Raises:
        ValueError: the content is not plain data; the message names the type.
        OSError: the disk is full or has another error.
    """
    path.with_name(f"{path.name}.tmp").unlink(missing_ok=True)  # half a file of fairseq's
    with atomic_write(path) as unfinished:
        try:
            with unfinished.open("wb") as file:
                torch.save(content, file)
        except RuntimeError as error:  # torch's error for one of the disk
            raise _said_by_disk(error) or error from None
        try:
            torch.load(unfinished, map_location="cpu", weights_only=True, mmap=True)
        except UnpicklingError as error:
            apart = path.with_name(f"{path.stem}.unloadable{path.suffix}")
            os.replace(unfinished, apart)
            raise ValueError(f"it would not load: {refusal(path, error)}; it is {apart}") from error


def _said_by_disk(error: Optional[BaseException]) -> Optional[OSError]:
    while error is not None and not isinstance(error, OSError):
        error = error.__context__
    return error


def lock(folder: Path) -> None:
    """Keep other trainings from saving into this folder until this process ends in any way.

    Raises:
        ValueError: another training saves there; the message names it.
    """
    folder = folder.resolve()
    if folder in _held:
        return
    try:
        file = (folder / LOCK).open("a+", encoding="utf-8")
    except OSError as error:
        raise ValueError(f"--save-dir {folder}: cannot be written: {error.strerror}") from error
    try:
        # Unlike flock's, this lock is not inherited by the workers that load data.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        file.seek(0)
        raise ValueError(
            f"--save-dir {folder}: {file.read().strip() or 'another process'} is training into this"
            " folder; wait for it, end it, or name another folder"
        ) from error
    except OSError as error:
        logger.warning("%s: cannot be locked (%s); let no other training save there", folder, error)
    _held[folder] = file
    with suppress(OSError):  # on a full disk the lock holds without a name
        os.truncate(file.fileno(), 0)
        os.write(file.fileno(), f"process {os.getpid()} on {socket.gethostname()}\n".encode())


def save_whole_files(persist: Callable) -> Callable:
    """Save through `save`."""

    @wraps(persist)
    def persist_whole(obj, filename, async_write=False):
        if async_write or "://" in str(filename):
            return persist(obj, filename, async_write)
        return save(obj, Path(filename))

    return persist_whole


def say_what_is_not_saved(save_checkpoint: Callable) -> Callable:
    """Report in one line that a checkpoint could not be saved, and why."""

    @wraps(save_checkpoint)
    def save_or_say(cfg, *args, **kwargs):
        try:
            return save_checkpoint(cfg, *args, **kwargs)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ValueError(
                f"--save-dir {cfg.save_dir}: the checkpoint could not be saved: {reason}; those"
                " saved before are whole"
            ) from error

    return save_or_say


def train_alone(load_checkpoint: Callable) -> Callable:
    """Lock the folder that a training saves into before it loads a checkpoint from there."""

    @wraps(load_checkpoint)
    def load_alone(cfg, trainer, **kwargs):
        is_master = trainer.cfg.distributed_training.distributed_rank == 0
        if is_master and not cfg.no_save:
            lock(Path(cfg.save_dir))
        return load_checkpoint(cfg, trainer, **kwargs)

    return load_alone
