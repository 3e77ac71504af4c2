"""`kron-data`: verify the published data sets and put them into folders for training."""

import sys
from typing import List, Optional

from .commands import listing, prepare
from .program import run

COMMANDS = {"list": listing, "prepare": prepare}


def main(argv: Optional[List[str]] = None) -> int:
    """Run the command line."""
    return run("kron-data", COMMANDS, argv)


if __name__ == "__main__":
    sys.exit(main())
