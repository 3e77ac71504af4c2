"""The folder for what can be made again: compiled code, prepared data."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """`$KRON_CACHE_DIR`, else `kron-plugin` in `$XDG_CACHE_HOME` or `~/.cache`; absolute, and it
    need not exist.

    Name what you put there by a hash of what it was made from, and write it through
    `kron_plugin.files.finished`: several processes share the folder.

    Raises:
        RuntimeError: neither variable is set, and this user has no home.
    """
    chosen = os.environ.get("KRON_CACHE_DIR")
    if chosen:
        return Path(chosen).expanduser().absolute()
    parent = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return parent.absolute() / "kron-plugin"
