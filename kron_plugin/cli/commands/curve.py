"""Draw a metric in a training log, and the trivial baseline."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from ..arguments import add_output


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "log", type=Path, metavar="LOG", help="log of fairseq-train with --log-format json"
    )
    parser.add_argument("--metric", required=True, help="the metric, such as bits or nll")
    add_output(parser, "the PNG to write", required=True)
    parser.add_argument("--title", default="", help="title of the picture")


def run(args: Namespace) -> None:
    from ..curve import read_log
    from ..pictures import draw_log

    draw_log(read_log(args.log), args.metric, args.title, args.output)
