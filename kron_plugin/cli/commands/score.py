"""Score a checkpoint: the field's metric and the trivial baseline."""

import json
from argparse import ArgumentParser, Namespace

from ...checks import require_positive
from ..arguments import add_checkpoint, add_cpu, add_data, add_output, add_user_dir, written


def arguments(parser: ArgumentParser) -> None:
    add_checkpoint(parser)
    add_data(parser)
    add_user_dir(parser)
    parser.add_argument("--split", default="test", help="train, valid or test")
    parser.add_argument(
        "--batch-size", type=int, metavar="N", default=64, help="sequences at a time"
    )
    add_cpu(parser)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    add_output(parser, "also write the JSON into this file")


def run(args: Namespace) -> None:
    require_positive(args, "batch_size")

    from ...restore import read_known

    state = read_known(args.checkpoint)

    from ..evaluate import evaluate, table

    result = evaluate(args.checkpoint, state, args.data, args.split, args.batch_size, args.cpu)
    as_json = json.dumps(result, indent=2)
    if args.output:
        with written(args.output) as unfinished:
            unfinished.write_text(as_json + "\n", encoding="utf-8")
    print(as_json if args.json else table(result))
