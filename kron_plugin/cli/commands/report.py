"""Make the report of all recorded runs.

It has tables with the published numbers, and pictures, which are written beside the records.
"""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from ...checks import require
from ..arguments import add_output, add_user_dir


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--results",
        type=Path,
        metavar="FOLDER",
        default=Path("recipes/results"),
        help="folder with the records and published.csv",
    )
    add_output(parser, "the text to write", default=Path("RESULTS.md"))
    add_user_dir(parser)


def run(args: Namespace) -> None:
    require(args.results.is_dir(), f"--results {args.results}: no such folder")

    from ..report import report

    report(args.results, args.output)
