"""What fairseq is to know of this package: tasks, models, criterions, optimisers, and messages."""

import importlib
import pkgutil
import sys
import traceback
from pathlib import Path
from types import TracebackType
from typing import Optional

from .checks import in_options
from .packages import missing_package


def register() -> None:
    """Register our tasks, architectures, criterions and optimisers with fairseq. Safe to repeat.

    Importing this package does it if fairseq is imported already, as with `--user-dir`.
    """
    from fairseq.utils import import_user_module

    folder = Path(__file__).parent
    is_user_dir = str(folder) in getattr(import_user_module, "memo", ())
    if is_user_dir:
        sys.excepthook = _say_plainly  # first: our modules may lack a package
    for room in ("tasks", "models", "criterions", "optim"):
        package = importlib.import_module(f"{__package__}.{room}")
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{package.__name__}.{module.name}")
    from .fairseq_patches import apply_patches

    apply_patches()
    if not is_user_dir:
        return
    from .checkpoints import admit_plain_data_only
    from .console import hide_lines, silence_remarks

    admit_plain_data_only()
    silence_remarks()
    hide_lines()
    # fairseq has put our parent folder in front of sys.path and leaves it there. In a checkout
    # `import tasks` would then find our folder.
    if sys.path[0] == str(folder.parent):
        del sys.path[0]


def _say_plainly(kind: type, error: BaseException, trace: Optional[TracebackType]) -> None:
    """Report a wrong option or file in one line without a traceback, in fairseq's commands."""
    command = Path(sys.argv[0]).name
    # fairseq wraps a model's error about a checkpoint in a bare Exception.
    plain = error.__context__ or error if kind is Exception else error
    is_told = isinstance(plain, (ValueError, ModuleNotFoundError))
    frames = traceback.extract_tb(plain.__traceback__) if is_told else []
    if kind is KeyboardInterrupt:
        print(f"{command}: interrupted", file=sys.stderr)
    elif frames and Path(frames[-1].filename).is_relative_to(Path(__file__).parent):
        print(f"{command}: {_in_words_of_a_user(plain)}", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


def _in_words_of_a_user(error: BaseException) -> str:
    if isinstance(error, ModuleNotFoundError):
        return missing_package(error) or str(error)
    from .models.options import ARGUMENTS

    return in_options(str(error), ARGUMENTS)
