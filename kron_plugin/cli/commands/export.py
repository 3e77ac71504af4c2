"""Write a trained model for programs without this package.

torch: a program for whole sequences and one for a single step, NAME_step, that torch.export.load
reads. onnx: the same two as models of ONNX. What they compute is in plain operators. c: NAME.c and
NAME.h, which read one step a call and need nothing but C99.
"""

from argparse import ArgumentParser, Namespace

from ...export import FORMATS, exporter, files, require_exportable
from ..arguments import add_checkpoint, add_output, add_user_dir, check_output, say_written


def arguments(parser: ArgumentParser) -> None:
    add_checkpoint(parser)
    parser.add_argument(
        "--format", required=True, metavar="NAME", choices=FORMATS, help=" or ".join(FORMATS)
    )
    add_output(parser, "the file to write; others lie beside it", required=True)
    add_user_dir(parser)


def run(args: Namespace) -> None:
    for path in files(args.format, args.output):
        check_output(args, path)

    from ...checkpoints import named
    from ...trained import load

    export = exporter(args.format)
    model = load(args.checkpoint)
    with named(args.checkpoint, "cannot be exported"):
        require_exportable(model)
    for path in export(model, args.output):
        say_written(path)
