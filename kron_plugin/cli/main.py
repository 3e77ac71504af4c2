"""`kron-eval`: commands for a trained model, its log and its record."""

import sys
from typing import List, Optional

from .commands import compress, curve, export, inspect, record, report, sample, score
from .program import run

COMMANDS = {
    "score": score,
    "curve": curve,
    "sample": sample,
    "inspect": inspect,
    "compress": compress,
    "export": export,
    "record": record,
    "report": report,
}


def main(argv: Optional[List[str]] = None) -> int:
    """Run the command line; `kron-eval CHECKPOINT …` is short for `kron-eval score …`."""
    return run("kron-eval", COMMANDS, argv, short_for="score")


if __name__ == "__main__":
    sys.exit(main())
