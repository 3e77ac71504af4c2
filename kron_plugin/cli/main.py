"""`kron-eval CHECKPOINT …` scores a checkpoint; `kron-eval curve LOG …` draws a training log;
`kron-eval sample CHECKPOINT …` lets a model of music or text go on; `kron-eval compress CHECKPOINT
…` gives a trained LSTM or RNN Kronecker factors; `kron-eval record CHECKPOINT …` writes down a run,
`kron-eval report` tells of all that were.

Only what a command needs is imported, when it is needed: the toolkit alone takes five seconds.
"""

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import List, Optional


def main(argv: Optional[List[str]] = None) -> int:
    """Run the command line; 0 when it did its work, 2 when something was wrong with what it got."""
    argv = sys.argv[1:] if argv is None else argv
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("kron_plugin").setLevel(logging.INFO)
    try:
        command = COMMANDS.get(argv[0]) if argv else None
        return command(argv[1:]) if command else _evaluate(argv)
    except (ValueError, OSError) as error:
        print(f"kron-eval: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("kron-eval: interrupted", file=sys.stderr)
        return 130


def _evaluate(argv: List[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="kron-eval",
        description="Score a checkpoint on its task, the field's metric beside the trivial"
        " baseline. Also: `kron-eval curve --help`, which draws a training log, `kron-eval sample"
        " --help`, which lets a model of music or text go on, `kron-eval compress --help`, which"
        " gives a trained LSTM or RNN Kronecker factors, `kron-eval record --help`, which writes"
        " down a run, and `kron-eval report --help`, which tells of all that were.",
    )
    parser.add_argument("checkpoint", type=Path, help="a checkpoint of fairseq-train")
    parser.add_argument("--data", help="where the data lie (default: where training found them)")
    parser.add_argument("--split", default="test", help="train, valid or test (default: test)")
    parser.add_argument("--batch-size", type=int, default=64, help="sequences at a time")
    parser.add_argument("--cpu", action="store_true", help="leave a GPU alone")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--output", type=Path, help="write the JSON into this file too")
    args = parser.parse_args(argv)
    if args.batch_size < 1:
        raise ValueError(f"--batch-size={args.batch_size}: must be at least 1")

    _check_output(args.output)

    from .checkpoint import read, require_known_options

    state = read(args.checkpoint)
    require_known_options(args.checkpoint, state)

    from ..files import finished
    from .evaluate import evaluate, table

    result = evaluate(args.checkpoint, state, args.data, args.split, args.batch_size, args.cpu)
    as_json = json.dumps(result, indent=2)
    if args.output:
        with finished(args.output) as unfinished:
            unfinished.write_text(as_json + "\n", encoding="utf-8")
    print(as_json if args.json else table(result))
    return 0


def _curve(argv: List[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="kron-eval curve",
        description="Draw a training log: the metric over the updates, and the trivial baseline.",
    )
    parser.add_argument("log", type=Path, help="a log of fairseq-train in JSON")
    parser.add_argument("--metric", required=True, help="what to draw, such as bits or nll")
    parser.add_argument("--output", type=Path, required=True, help="the PNG to write")
    parser.add_argument("--title", default="", help="title of the picture")
    args = parser.parse_args(argv)

    _check_output(args.output)

    from .curve import draw, read_log

    draw(read_log(args.log), args.metric, args.title, args.output)
    return 0


def _sample(argv: List[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="kron-eval sample",
        description="Let a model of music or text continue a prompt.",
    )
    parser.add_argument("checkpoint", type=Path, help="a checkpoint of the task music or char_lm")
    parser.add_argument("--prompt", help="a MIDI file for music, text for text (default: nothing)")
    parser.add_argument("--steps", type=int, default=200, help="how far to go on (default: 200)")
    parser.add_argument("--temperature", type=float, default=1.0, help="below 1: less daring")
    parser.add_argument("--seed", type=int, default=1, help="another seed, another sample")
    parser.add_argument("--output", type=Path, help="the MIDI or text file to write")
    parser.add_argument("--data", help="where the data lie (default: where training found them)")
    args = parser.parse_args(argv)

    if args.steps < 1:
        raise ValueError(f"--steps={args.steps}: must be at least 1")
    if not args.temperature > 0:
        raise ValueError(f"--temperature={args.temperature}: must be above 0")
    _check_output(args.output)

    from .checkpoint import read, require_known_options

    require_known_options(args.checkpoint, read(args.checkpoint))

    from .sample import sample

    options = (args.prompt, args.steps, args.temperature, args.seed, args.output)
    print(sample(args.checkpoint, args.data, *options))
    return 0


def _compress(argv: List[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="kron-eval compress",
        description="Replace the recurrent matrices of a trained LSTM or RNN (--cell lstm, rnn) by"
        " the nearest Kronecker products, to be trained further or evaluated as it is.",
    )
    parser.add_argument("checkpoint", type=Path, help="a checkpoint of fairseq-train")
    parser.add_argument("--factors", required=True, help="factor sizes, as '16,32' or '2x4,4x2'")
    parser.add_argument("--output", type=Path, required=True, help="the checkpoint to write")
    args = parser.parse_args(argv)

    _check_output(args.output)

    import torch

    from ..files import finished
    from .checkpoint import read
    from .compress import compress, table

    state = read(args.checkpoint)
    new, matrices = compress(args.checkpoint, state, args.factors)
    with finished(args.output) as unfinished, unfinished.open("wb") as file:
        torch.save(new, file)
    print(table(state, new, matrices, args.output))
    return 0


def _record(argv: List[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="kron-eval record",
        description="Write down a training run that has just ended: command, commit, machine,"
        " learning curve, and the scores of its checkpoint on validation and test.",
    )
    parser.add_argument("checkpoint", type=Path, help="a checkpoint of fairseq-train")
    parser.add_argument("--log", type=Path, required=True, help="its log in JSON")
    parser.add_argument("--command", required=True, help="what makes such a run again")
    parser.add_argument("--output", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--data", help="where the data lie (default: where training found them)")
    parser.add_argument("--cpu", action="store_true", help="leave a GPU alone")
    args = parser.parse_args(argv)

    _check_output(args.output)

    from .checkpoint import read, require_known_options

    state = read(args.checkpoint)
    require_known_options(args.checkpoint, state)

    from ..files import finished
    from .evaluate import table
    from .record import as_text, record

    run, test = record(args.checkpoint, state, args.log, args.command, args.data, args.cpu)
    with finished(args.output) as unfinished:
        unfinished.write_text(as_text(run), encoding="utf-8")
    print(table(test))
    return 0


def _report(argv: List[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="kron-eval report",
        description="Tell of all recorded runs beside the published numbers, in tables and"
        " pictures, which go beside the records.",
    )
    parser.add_argument(
        "--results",
        type=Path,
        default=Path("recipes/results"),
        help="folder of the records and of published.csv (default: recipes/results)",
    )
    parser.add_argument(
        "--output", type=Path, default=Path("RESULTS.md"), help="the text (default: RESULTS.md)"
    )
    args = parser.parse_args(argv)

    _check_output(args.output)

    from .report import report

    report(args.results, args.output)
    return 0


def _check_output(path: Optional[Path]) -> None:
    if path is not None and not path.parent.is_dir():
        raise ValueError(f"--output {path}: there is no folder {path.parent}")


COMMANDS = {
    "compress": _compress,
    "curve": _curve,
    "record": _record,
    "report": _report,
    "sample": _sample,
}

if __name__ == "__main__":
    sys.exit(main())
