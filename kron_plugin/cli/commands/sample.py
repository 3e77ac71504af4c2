"""Let a model of music or text continue a prompt."""

from argparse import ArgumentParser, Namespace

from ...checks import require, require_positive, require_seed
from ..arguments import add_checkpoint, add_data, add_output, add_user_dir


def arguments(parser: ArgumentParser) -> None:
    add_checkpoint(parser)
    parser.add_argument(
        "--prompt", help="a MIDI file for music, text for text (default: start from nothing)"
    )
    parser.add_argument("--steps", type=int, metavar="N", default=200, help="steps to add")
    parser.add_argument(
        "--temperature", type=float, metavar="X", default=1.0, help="below 1 favours likely choices"
    )
    parser.add_argument(
        "--seed", type=int, metavar="N", default=1, help="another seed gives another sample"
    )
    add_output(parser, "the MIDI file to write (needed for music) or the text file")
    add_data(parser)
    add_user_dir(parser)


def run(args: Namespace) -> None:
    require_positive(args, "steps")
    require_seed(args, "seed")
    require(args.temperature > 0, f"--temperature={args.temperature}: must be above 0")

    from ...restore import read_known

    state = read_known(args.checkpoint)

    from ..sample import sample

    options = (args.prompt, args.steps, args.temperature, args.seed, args.output)
    print(sample(args.checkpoint, state, args.data, *options))
