"""Load checkpoints as data: no code in one is ever run, whatever the environment says."""

import os
import re
import warnings
import zipfile
from argparse import Namespace
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Callable, Iterator, Optional, Union

import torch

from .arrays import STAND_INS
from .schema import check

# Admitted in addition to torch's own types. fairseq's older optimisers and schedulers keep their
# options in a Namespace, which only holds attributes.
PLAIN_TYPES = (Namespace,)

# torch's switches of what `torch.load` admits.
FORCE_CODE, FORCE_DATA = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


def damage(path: Union[Path, str]) -> Optional[str]:
    """What is wrong with an incomplete or altered file of `torch.save`. None for whole files, and
    for other files, which the loader judges.

    `torch.save` writes a zip archive. Its table of contents is at the end, and torch does not
    compare its checksums. `torch.save` never compresses, so the content needs no more memory than
    the archive.
    """
    with open(path, "rb") as file:
        start = file.read(2)
    if not any(start):  # empty, or zeros after a loss of power
        return "damaged"
    if not b"PK".startswith(start):
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if any(member.compress_type != zipfile.ZIP_STORED for member in members):
                return "compressed, which torch.save never does; is it a program of TorchScript?"
            if sum(member.file_size for member in members) > os.path.getsize(path):
                return "damaged"
            return "damaged" if archive.testzip() else None
    except Exception:  # the parser can raise nearly anything
        return "damaged"


def is_damaged(path: Union[Path, str]) -> bool:
    """Whether a file of `torch.save` is incomplete or altered."""
    return damage(path) is not None


def load(path: Union[Path, str]) -> Any:
    """The content of a file that `torch.save` wrote: tensors, plain containers, PLAIN_TYPES, and
    numpy's arrays of numbers.

    Raises:
        ValueError: the file is damaged or holds other types; the message says which.
    """
    admit_plain_data_only()
    with named(path), warnings.catch_warnings():
        require_whole(path)
        warnings.simplefilter("ignore")  # torch warns about pickles and then refuses them
        return torch.load(path, map_location="cpu", weights_only=True)


def require_whole(path: Union[Path, str]) -> None:
    """Raise an UnpicklingError that says what is wrong with a damaged file."""
    reason = damage(path)
    if reason:
        raise UnpicklingError(reason)


@contextmanager
def named(path: Union[Path, str], what: str = "not a readable checkpoint") -> Iterator[None]:
    """Turn errors about the content of a checkpoint into a ValueError that names the file.

    torch, omegaconf and fairseq can raise nearly anything for an altered one.
    """
    try:
        yield
    except (OSError, MemoryError):
        raise
    except UnpicklingError as error:
        raise refusal(path, error) from error
    except Exception as error:
        # fairseq wraps a model's error about its parameters in a bare Exception.
        cause = error.__context__ if type(error) is Exception and error.__context__ else error
        reason = (str(cause).strip() or type(cause).__name__).splitlines()[0]
        if isinstance(cause, ValueError) and str(path) in reason:
            raise cause from None
        reason = f"it has no {reason}" if isinstance(cause, KeyError) else reason
        raise ValueError(f"{path}: {what}: {reason}") from error


def refusal(path: Union[Path, str], error: UnpicklingError) -> ValueError:
    """The error for a refused checkpoint; torch's own message advises to disable its safety."""
    code = re.search(r"GLOBAL ([\w.]+)", str(error))
    other = re.search(r"error: (an array .*)|^(damaged|compressed.*)$", str(error), re.MULTILINE)
    if code:
        reason = f"refers to {code[1]}, which could run code"
    else:
        reason = other[0].removeprefix("error: ") if other else "damaged"
    return ValueError(
        f"{path}: not a readable checkpoint: {reason}; it has to hold tensors and plain data alone"
    )


def admit_plain_data_only() -> None:
    """Restrict `torch.load` to plain data, in this process and in those that it starts."""
    # torch reads both variables at each load and fails if both are set.
    os.environ.pop(FORCE_CODE, None)
    os.environ[FORCE_DATA] = "1"
    admit_plain_types()


@contextmanager
def plain_data_only() -> Iterator[None]:
    """For a while what `admit_plain_data_only` does for good: what else the caller's program loads
    is its own affair."""
    before = {name: os.environ.get(name) for name in (FORCE_CODE, FORCE_DATA)}
    admit_plain_data_only()
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def admit_plain_types() -> None:
    """Let `torch.load` accept the other plain types. Safe to repeat."""
    torch.serialization.add_safe_globals([*PLAIN_TYPES, *STAND_INS])


def check_what_is_loaded(load: Callable) -> Callable:
    """Check each checkpoint as it is loaded; name a refused one and the reason."""
    from fairseq.data import Dictionary

    # Speech tasks keep dictionaries in their state; these only hold attributes.
    torch.serialization.add_safe_globals([Dictionary])

    @wraps(load)
    def load_checked(path, *args, **kwargs):
        with named(path):
            if os.path.isfile(path):
                require_whole(path)
            state = load(path, *args, **kwargs)
            check(state)
            return state

    return load_checked


def build_what_fits(load_models: Callable) -> Callable:
    """Compare a checkpoint's options with its parameters before the model is built."""
    from fairseq import checkpoint_utils, tasks

    from .models.mismatch import complete_options, require_fitting

    @wraps(load_models)
    def load_fitting(
        filenames, arg_overrides=None, task=None, strict=True, suffix="", num_shards=1, state=None
    ):
        if num_shards > 1 or state is not None:
            return load_models(filenames, arg_overrides, task, strict, suffix, num_shards, state)
        models, cfg = [], None
        for name in filenames:
            path = checkpoint_utils.get_maybe_sharded_checkpoint_filename(name, suffix, 0, 1)
            if not checkpoint_utils.PathManager.exists(path):
                raise ValueError(f"{path}: no such checkpoint")
            state = checkpoint_utils.load_checkpoint_to_cpu(path, arg_overrides)
            with named(path, "cannot be built"):
                complete_options(state["cfg"])
                if task is None:
                    task = tasks.setup_task(state["cfg"].task, from_checkpoint=True)
                    task.load_state_dict(state.get("task_state", {}))  # its symbols, if it has some
                require_fitting(state, task)
                loaded, cfg, task = load_models([path], None, task, strict, state=state)
            models += loaded
        return models, cfg, task

    return load_fitting
