"""Checkpoints are data: nothing in one is ever run, whatever the environment says."""

import os
import re
import warnings
import zipfile
from argparse import Namespace
from functools import wraps
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Union

import torch

from .arrays import STAND_INS

# Beyond what torch admits itself: the toolkit's older optimisers and schedulers keep their options
# in a Namespace, which is no more than its attributes.
PLAIN_TYPES = (Namespace,)


def is_damaged(path: Union[Path, str]) -> bool:
    """Whether a file of `torch.save` is incomplete or altered; other files are left to the loader.

    Such a file is a zip archive, with its table of contents at the end and checksums, which torch
    itself does not compare.
    """
    with open(path, "rb") as file:
        start = file.read(2)
    if not any(start):  # empty, or what a file system leaves of a file after a loss of power
        return True
    if not b"PK".startswith(start):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is not None
    except Exception:  # the parser raises whatever it stumbles over
        return True


def load(path: Path) -> Any:
    """The content of a file that `torch.save` wrote: tensors, plain containers, PLAIN_TYPES, and
    numpy's arrays of numbers.

    Raises:
        ValueError: the file is damaged, or holds anything else; the message says which.
    """
    admit_plain_data_only()
    try:
        if is_damaged(path):
            raise UnpicklingError
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch remarks on pickles that it then refuses
            return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise refusal(path, error) from error
    except Exception as error:  # torch raises whatever its parsers stumble over
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path}: not a readable checkpoint: {reason}") from error


def refusal(path: Union[Path, str], error: UnpicklingError) -> ValueError:
    """What to say of a checkpoint; torch's own words recommend to switch its safety off."""
    found = re.search(r"GLOBAL ([\w.]+)", str(error))
    reason = f"refers to {found[1]}, which could run code" if found else "damaged"
    return ValueError(
        f"{path}: not a readable checkpoint: {reason}; it has to hold tensors and plain data alone"
    )


def admit_plain_data_only() -> None:
    """Let no `torch.load` of this process, or of those it starts, take more than plain data."""
    # torch reads both at each load and fails where both are set.
    os.environ.pop("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", None)
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    torch.serialization.add_safe_globals([*PLAIN_TYPES, *STAND_INS])


def name_refused_checkpoints() -> None:
    """Have the toolkit say which checkpoint was refused, and why; harmless to repeat."""
    from fairseq import checkpoint_utils

    load = checkpoint_utils.load_checkpoint_to_cpu
    if hasattr(load, "__wrapped__"):
        return

    @wraps(load)
    def load_or_name(path, *args, **kwargs):
        try:
            if os.path.isfile(path) and is_damaged(path):
                raise UnpicklingError
            return load(path, *args, **kwargs)
        except UnpicklingError as error:
            raise refusal(path, error) from error

    checkpoint_utils.load_checkpoint_to_cpu = load_or_name
