"""Give a trained LSTM or RNN the nearest Kronecker factors.

The recurrent matrices of --cell lstm or rnn become products, to be trained further or scored as
they are.
"""

from argparse import ArgumentParser, Namespace

from ..arguments import add_checkpoint, add_output, written


def arguments(parser: ArgumentParser) -> None:
    add_checkpoint(parser)
    parser.add_argument("--factors", required=True, help="factor sizes, as '16,32' or '2x4,4x2'")
    add_output(parser, "the checkpoint to write", required=True)


def run(args: Namespace) -> None:
    import torch

    from ...restore import read
    from ..compress import compress, table

    state = read(args.checkpoint)
    new, matrices = compress(args.checkpoint, state, args.factors)
    with written(args.output) as unfinished, unfinished.open("wb") as file:
        torch.save(new, file)
    print(table(state, new, matrices, args.output))
