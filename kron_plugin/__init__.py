"""Kronecker Recurrent Units for fairseq and PyTorch.

`from kron_plugin.modules import KRU` needs only torch. As `--user-dir` of a fairseq command the
package registers its tasks, models, criterions and optimisers with fairseq.
"""

import sys
from typing import Any

from .registration import register

__all__ = ["KRU", "KRUGRU", "KRULSTM", "load", "parameter_groups", "register"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import the layers, `load` and `parameter_groups` on first use: commands need not wait for
    torch."""
    if name == "load":
        from .trained import load

        return load
    if name in __all__:
        from . import modules

        return getattr(modules, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


if sys.modules.get("fairseq"):
    register()
