"""Record a training run that has just ended.

The record has the command, the commit, the machine, the learning curve, and the scores of the
checkpoint on validation and test. The weights alone are written beside it, into a file of the same
name that ends in .pt; kron-eval takes it as a checkpoint.
"""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from ...checks import require
from ..arguments import add_checkpoint, add_cpu, add_data, add_output, add_user_dir, written


def arguments(parser: ArgumentParser) -> None:
    add_checkpoint(parser)
    parser.add_argument(
        "--log", type=Path, metavar="LOG", required=True, help="its JSON log from fairseq-train"
    )
    parser.add_argument("--command", required=True, help="the command that repeats the run")
    add_output(parser, "the JSON file to write", required=True)
    add_data(parser)
    add_user_dir(parser)
    add_cpu(parser)


def run(args: Namespace) -> None:
    weights = args.output.with_suffix(".pt")
    replaced = f"--output {args.output}: the weights would replace {weights}; choose another name"
    for other in (args.output, args.checkpoint):
        require(weights.resolve() != other.resolve(), replaced)

    import torch

    from ...checkpoints import load
    from ...restore import read_known, weights_alone

    # A checkpoint to resume from is not made again.
    require(not weights.exists() or "last_optimizer_state" not in load(weights), replaced)
    state = read_known(args.checkpoint)

    from ..evaluate import table
    from ..record import as_text, record

    made, test = record(args.checkpoint, state, args.log, args.command, args.data, args.cpu)
    with written(weights) as unfinished, unfinished.open("wb") as file:
        torch.save(weights_alone(state), file)
    with written(args.output) as unfinished:
        unfinished.write_text(as_text(made), encoding="utf-8")
    print(table(test))
