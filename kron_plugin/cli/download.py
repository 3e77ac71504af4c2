"""Download files: continue where a transfer broke off, and name a file only when it is whole."""

import os
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from ..progress import progress

AGENT = "kron-plugin"
TIMEOUT = 30  # seconds without a byte
CHUNK = 1 << 16


def download(url: str, path: Path) -> None:
    """Fetch `url` into `path`, and continue from the `path`.part of an earlier call.

    A broken transfer is continued as long as that brings new bytes. After that its part is kept for
    the next call.

    Raises:
        OSError, HTTPException: the host cannot be reached, has no such file, or broke off.
    """
    part = part_of(path)
    while True:
        before = _size(part)
        try:
            _transfer(url, part, path.name)
        except (OSError, HTTPException):
            if _size(part) <= before:
                raise
        else:
            os.replace(part, path)
            return


def part_of(path: Path) -> Path:
    """The path of an unfinished download."""
    return path.with_name(f"{path.name}.part")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _transfer(url: str, part: Path, name: str) -> None:
    start = _size(part)
    headers = {"User-Agent": AGENT, "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    try:
        response = urlopen(Request(url, headers=headers), timeout=TIMEOUT)
    except HTTPError as error:
        if error.code != 416 or not start:
            raise
        part.unlink()  # nothing follows the part: it is whole, or of another file; begin again
        return _transfer(url, part, name)
    with response:
        if response.status != 206:  # the host sends the whole file
            start = 0
        length = int(response.headers.get("Content-Length", 0))
        total = start + length if length else 0
        shown = progress(f"downloading {name}", total, "bytes", start)
        with part.open("ab" if start else "wb") as file, shown as advance:
            while chunk := response.read(CHUNK):
                file.write(chunk)
                advance(len(chunk))
    if total and _size(part) != total:
        raise OSError(f"the transfer broke off after {_size(part)} of {total} bytes")
