"""Kronecker Recurrent Units for fairseq and PyTorch.

`from kron_plugin.modules import KRU` needs torch alone. As `--user-dir` of a fairseq command the
package registers its tasks, models, criterions and optimisers with the toolkit.
"""

import importlib
import pkgutil
import sys
import traceback
from pathlib import Path
from types import TracebackType
from typing import Any, Optional

__all__ = ["KRU", "KRULSTM", "register"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """The layers, once they are asked for: our commands begin without torch's two seconds."""
    if name in __all__:
        from . import modules

        return getattr(modules, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def register() -> None:
    """Make fairseq know our tasks, architectures, criterions and optimisers; harmless to repeat.

    Happens by itself when fairseq is imported first, as `--user-dir` does.
    """
    for room in ("tasks", "models", "criterions", "optim"):
        package = importlib.import_module(f"{__name__}.{room}")
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{package.__name__}.{module.name}")
    package = Path(__file__).parent
    from fairseq.utils import import_user_module

    if str(package) not in getattr(import_user_module, "memo", ()):
        return
    sys.excepthook = _say_plainly
    from .checkpoints import admit_plain_data_only, name_refused_checkpoints
    from .console import show_bars, silence_remarks
    from .progress import write_lines_once
    from .resume import make_exact

    admit_plain_data_only()
    name_refused_checkpoints()
    make_exact()
    write_lines_once()
    silence_remarks()
    show_bars()
    # fairseq has put our parent folder in front of sys.path and leaves it there. In a checkout its
    # folders, such as `tasks`, would answer to their bare names.
    if sys.path[0] == str(package.parent):
        del sys.path[0]


def _say_plainly(kind: type, error: BaseException, trace: Optional[TracebackType]) -> None:
    """In the toolkit's commands, what is wrong with an option or a file is one line, no trace."""
    command = Path(sys.argv[0]).name
    # What a model says of a checkpoint comes wrapped in a bare Exception.
    plain = error.__context__ if kind is Exception else error
    frames = traceback.extract_tb(plain.__traceback__) if isinstance(plain, ValueError) else []
    if kind is KeyboardInterrupt:
        print(f"{command}: interrupted", file=sys.stderr)
    elif frames and Path(frames[-1].filename).is_relative_to(Path(__file__).parent):
        print(f"{command}: {plain}", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


if sys.modules.get("fairseq"):
    register()
