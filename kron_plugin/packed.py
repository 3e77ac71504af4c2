"""Read files, compressed or not, with a size limit."""

import gzip
import zlib
from pathlib import Path
from typing import Iterator

from .checks import require

BLOCK = 1 << 20
ANYWAY = 64 << 20  # bytes that any file may unpack to
RATIO = 100  # images and music shrink to a tenth at best, zeros to a thousandth


def blocks(path: Path) -> Iterator[bytes]:
    """The content of a file in blocks; unpacked if its name ends in .gz.

    Raises:
        ValueError: the gzip file is damaged, or unpacks to far more than data would.
    """
    packed = path.suffix == ".gz"
    most = max(ANYWAY, RATIO * path.stat().st_size)
    try:
        with (gzip.open if packed else open)(path, "rb") as file:
            size = 0
            while block := file.read(BLOCK):
                size += len(block)
                require(
                    size <= most or not packed,
                    f"{path}: unpacks to more than {most:,} bytes, as no data do; unpack it"
                    " yourself if it is what you want",
                )
                yield block
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}: not a whole gzip file: {error}") from error
