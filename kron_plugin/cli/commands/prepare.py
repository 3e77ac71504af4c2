"""Verify a data set and put it into a folder for training."""

import os
from argparse import ArgumentParser, Namespace
from pathlib import Path

from ...checks import require
from ..arguments import say_written


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("set", metavar="SET", help="a data set that `kron-data list` names")
    origin = parser.add_mutually_exclusive_group(required=True)
    origin.add_argument(
        "--source", type=Path, metavar="FOLDER", help="folder of its files (this or --download)"
    )
    origin.add_argument(
        "--download",
        action="store_true",
        help="fetch its files from their publishers (this or --source)",
    )
    parser.add_argument("--mirror", metavar="URL", help="fetch its files from this address")
    parser.add_argument(
        "--dest",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="folder to make; sets of piano rolls may share one",
    )


def run(args: Namespace) -> None:
    require(
        args.download or not args.mirror, f"--mirror {args.mirror}: only together with --download"
    )
    place = next(folder for folder in args.dest.absolute().parents if folder.exists())
    require(
        place.is_dir() and os.access(place, os.W_OK),
        f"--dest {args.dest}: no folder can be made in {place}",
    )

    from ..prepare import prepare

    print(prepare(args.set, args.source, args.dest, args.mirror))
    say_written(args.dest)
