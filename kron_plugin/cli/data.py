"""`kron-data prepare SET …` verifies the published data of a task and puts them into a folder."""

import argparse
import logging
import sys
from pathlib import Path
from typing import List, Optional


def main(argv: Optional[List[str]] = None) -> int:
    """Run the command line; 0 when it did its work, 2 when something was wrong with what it got."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("kron_plugin").setLevel(logging.INFO)
    args = _parser().parse_args(argv)
    try:
        return _run(args)
    except (ValueError, OSError) as error:
        print(f"kron-data: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("kron-data: interrupted", file=sys.stderr)
        return 130


def _run(args: argparse.Namespace) -> int:
    # Only now: it imports what reads and writes MIDI files and tokenizers.
    from .prepare import overview, prepare

    if args.command == "list":
        print(overview())
        return 0
    if args.mirror and not args.download:
        raise ValueError(f"--mirror {args.mirror}: only together with --download")
    print(prepare(args.set, args.source, args.dest, args.mirror))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kron-data", description="Prepare the published data sets for training."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="the data sets, their files, locations and licences")
    prepare = commands.add_parser("prepare", help="verify a data set and put it into a folder")
    prepare.add_argument("set", metavar="SET", help="a data set that `kron-data list` names")
    origin = prepare.add_mutually_exclusive_group(required=True)
    origin.add_argument("--source", type=Path, metavar="FOLDER", help="where its files lie")
    origin.add_argument(
        "--download", action="store_true", help="fetch them where they are published"
    )
    prepare.add_argument("--mirror", metavar="URL", help="fetch them from below this address")
    prepare.add_argument(
        "--dest", type=Path, required=True, metavar="FOLDER", help="made, or shared"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
