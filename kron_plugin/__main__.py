"""`python -m kron_plugin`: the commands of `kron-eval` and `kron-data` together."""

import sys

from .cli.data import COMMANDS as DATA
from .cli.main import COMMANDS as EVAL
from .cli.program import run

if __name__ == "__main__":
    sys.exit(run("python -m kron_plugin", {**EVAL, **DATA}, short_for="score"))
