"""Kronecker Recurrent Units for fairseq and PyTorch.

`from kron_plugin.modules import KRU` needs torch alone. As `--user-dir` of a fairseq command the
package registers its tasks, models, criterions and optimisers with the toolkit.
"""

import importlib
import pkgutil
import sys
from pathlib import Path

from .modules import KRU

__all__ = ["KRU", "register"]
__version__ = "0.1.0"


def register() -> None:
    """Make fairseq know our tasks, architectures, criterions and optimisers; harmless to repeat.

    Happens by itself when fairseq is imported first, as `--user-dir` does.
    """
    for room in ("tasks", "models", "criterions", "optim"):
        package = importlib.import_module(f"{__name__}.{room}")
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{package.__name__}.{module.name}")
    # fairseq has put our parent folder in front of sys.path and leaves it there. In a checkout its
    # folders, such as `tasks`, would answer to their bare names.
    package = Path(__file__).parent
    from fairseq.utils import import_user_module

    by_fairseq = str(package) in getattr(import_user_module, "memo", ())
    if by_fairseq and sys.path[0] == str(package.parent):
        del sys.path[0]


if sys.modules.get("fairseq"):
    register()
