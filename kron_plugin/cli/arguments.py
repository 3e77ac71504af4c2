"""Arguments that several commands share, and checks of their files before any work starts."""

import os
import sys
from argparse import ArgumentParser, Namespace
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Iterator

from ..checks import require
from ..files import atomic_write
from ..published import find_checkpoint

READ = {"checkpoint": "checkpoint", "beside": "checkpoint", "log": "log"}  # what files to read are
MAY_NAME_A_FILE = (*READ, "prompt")


def add_checkpoint(parser: ArgumentParser) -> None:
    parser.add_argument(
        "checkpoint",
        type=find_checkpoint,
        metavar="CHECKPOINT",
        help="a checkpoint of fairseq-train, or the name of a model in recipes/models",
    )


def add_data(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--data", metavar="FOLDER", help="folder of the data, if not where training found them"
    )


def add_user_dir(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--user-dir",
        type=Path,
        metavar="FOLDER",
        help="a plugin with tasks of your own, as for fairseq-train",
    )


def add_cpu(parser: ArgumentParser) -> None:
    parser.add_argument("--cpu", action="store_true", help="do not use a GPU")


def add_output(parser: ArgumentParser, what: str, **options: Any) -> None:
    """Add `--output`, the file that a command writes; `what` is its help."""
    parser.add_argument("--output", type=Path, metavar="FILE", help=what, **options)


def check_files(args: Namespace) -> None:
    """Raise a ValueError unless the files to read exist and the file to write can be made."""
    for name, what in READ.items():
        path = getattr(args, name, None)
        if path is not None:
            require(path.exists(), f"{path}: no such {what}")
            require(not path.is_dir(), f"{path}: is a folder; name a {what} in it")
    user_dir = getattr(args, "user_dir", None)
    require(user_dir is None or user_dir.is_dir(), f"--user-dir {user_dir}: no such folder")
    output = getattr(args, "output", None)
    if output is not None:
        check_output(args, output)


def check_output(args: Namespace, output: Path) -> None:
    """Raise a ValueError unless this file can be made and is none of those to read."""
    option, folder = f"--output {output}", output.parent
    require(folder.is_dir(), f"{option}: there is no folder {folder}")
    require(not output.is_dir(), f"{option}: is a folder; name a file in it")
    require(output.is_file() or not output.exists(), f"{option}: is no regular file")
    require(os.access(folder, os.W_OK), f"{option}: nothing can be written into {folder}")
    for name in MAY_NAME_A_FILE:
        other = getattr(args, name, None)
        is_the_same = other is not None and os.path.realpath(other) == os.path.realpath(output)
        require(not is_the_same, f"{option}: is the {name} itself; choose another name")


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """Like `atomic_write`; then report the file on standard error."""
    with atomic_write(path) as unfinished:
        yield unfinished
    say_written(path)


def say_written(path: Path) -> None:
    print(f"wrote {path}", file=sys.stderr)
