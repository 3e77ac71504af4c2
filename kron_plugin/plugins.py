"""The tasks that fairseq knows: ours, and those of other plugins."""

from argparse import Namespace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Dict, Optional, Type

from .checks import require
from .registration import register

if TYPE_CHECKING:  # it imports fairseq, which takes five seconds
    from .tasks.base import SequenceTask


def import_user_dir(folder: Path) -> None:
    """Import a plugin, as fairseq's `--user-dir` does; the import registers its tasks.

    Raises:
        ValueError: it cannot be imported; the message says why.
    """
    from fairseq.utils import import_user_module

    register()
    try:
        import_user_module(Namespace(user_dir=str(folder)))
    except ImportError as error:
        raise ValueError(f"--user-dir {folder}: {error}") from error


@cache
def tasks() -> "Dict[str, Type[SequenceTask]]":
    """The classes of all registered tasks by name, among them fairseq's own."""
    from fairseq.tasks import TASK_REGISTRY

    register()
    return TASK_REGISTRY


def require_task(path: Path, name: Optional[str]) -> None:
    """Raise a ValueError that names the file unless its task is a registered `SequenceTask`."""
    require(
        name in tasks(),
        f"{path}: its task is {name!r}, which is not registered; --user-dir names the plugin that"
        " has it",
    )

    from .tasks.base import SequenceTask

    require(
        issubclass(tasks()[str(name)], SequenceTask),
        f"{path}: its task is {name!r}, no subclass of kron_plugin.tasks.base.SequenceTask;"
        " fairseq's own commands evaluate it, such as fairseq-generate",
    )
