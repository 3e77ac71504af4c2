"""Draw what a model's recurrent matrices and gradients do.

One page, inspect.png, has the eigenvalues and singular values of W, the gradient of the loss at
every step of the validation split, beside that of the untrained model, and the states of an
example. The table tells them in numbers, and the time scales that they mean.
"""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from ...checks import require, require_positive
from ..arguments import add_checkpoint, add_data, add_user_dir

NAME = "inspect.png"


def arguments(parser: ArgumentParser) -> None:
    add_checkpoint(parser)
    parser.add_argument(
        "--beside",
        type=Path,
        metavar="OTHER",
        help="a checkpoint of the same task, whose gradients are drawn too",
    )
    parser.add_argument(
        "--output",
        type=lambda folder: Path(folder) / NAME,
        metavar="FOLDER",
        default=".",
        help=f"an existing folder for {NAME}",
    )
    parser.add_argument(
        "--examples", type=int, metavar="N", default=8, help="the longest N examples are followed"
    )
    parser.add_argument(
        "--steps",
        type=int,
        metavar="N",
        help="the last N steps of each (default: 1000, of a text 300)",
    )
    add_data(parser)
    add_user_dir(parser)


def run(args: Namespace) -> None:
    require_positive(args, "examples")
    require(args.steps is None or args.steps > 1, f"--steps={args.steps}: must be at least 2")

    from ...restore import read_known

    paths = [path for path in (args.checkpoint, args.beside) if path]
    files = [(path, read_known(path, of_ours=True)) for path in paths]

    from ..inspect import inspect, table
    from ..page import draw

    seen = inspect(files, args.data, args.examples, args.steps)
    draw(seen, args.output)
    print(table(seen))
