"""The folder for what can be made again: compiled code, prepared data."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """`$KRON_CACHE_DIR`, else `kron-plugin` in `$XDG_CACHE_HOME` or `~/.cache`; absolute, and it
    need not exist.

    Name what you put there by a hash of what it was made from, and write it through
    `kron_plugin.files.finished`: several processes share the folder.

    Raises:
        OSError: it would be in the home of a user who has none.
    """
    chosen = os.environ.get("KRON_CACHE_DIR")
    try:
        if chosen:
            return Path(chosen).expanduser().absolute()
        parent = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError as error:
        raise OSError(f"no place for the cache: {error} Set KRON_CACHE_DIR to a folder") from error
    return parent.absolute() / "kron-plugin"
