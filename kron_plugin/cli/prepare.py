"""Find or fetch the files of a data set, verify them, and make a whole folder of them."""

import os
import shutil
from http.client import HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import List, Optional, Tuple
from urllib.error import URLError
from urllib.parse import quote

from tabulate import tabulate

from ..checks import require
from .datasets import DATASETS, Dataset, File, Row
from .download import download, part_of


def prepare(name: str, source: Optional[Path], dest: Path, mirror: Optional[str] = None) -> str:
    """Make the folder `dest` for training, and return a readable summary of its content.

    Sets of piano rolls may share a folder.

    Args:
        name: the data set.
        source: the folder of its files; None to fetch them.
        mirror: an address to fetch them from, instead of the published ones.

    Raises:
        ValueError, OSError: the message says what is wrong, and what to do about it. `dest` is
            unchanged.
    """
    require(name in DATASETS, f"{name!r}: no data set; choose one of {', '.join(DATASETS)}")
    dataset = DATASETS[name]
    dest = dest.resolve()
    _check_dest(dataset, dest)
    if source is not None:
        rows = _build(dataset, source, dest)
    else:
        # If this breaks off, the next call continues from the folder.
        downloads = dest.with_name(f".{dest.name}.{name}.download")
        fetch(dataset, downloads, mirror)
        rows = _build(dataset, downloads, dest)
        shutil.rmtree(downloads)
    table = tabulate(
        [(split, f"{count:,} {unit}", where) for split, count, unit, where in rows],
        headers=("split", "holds", "file"),
        disable_numparse=True,
    )
    return f"{dataset.title}\nlicence: {dataset.licence}\n\n{table}"


def _check_dest(dataset: Dataset, dest: Path) -> None:
    if not dest.exists() or (dest.is_dir() and not any(dest.iterdir())):
        return
    shared = dataset.shares and dest.is_dir()
    require(shared, f"--dest {dest}: exists already; choose a new folder, or remove it")
    for file in dataset.files:
        exists = (dest / file.name).exists()
        require(
            not exists, f"--dest {dest}: has {file.name!r} already; remove it to prepare it anew"
        )


def _build(dataset: Dataset, source: Path, dest: Path) -> List[Row]:
    """Verify the files and make `dest`, whole or not at all."""
    require(source.is_dir(), f"--source {source}: no such folder")
    paths = [_find(source, file) for file in dataset.files]
    for file, path in zip(dataset.files, paths, strict=True):
        _verify(dataset, file, path)
    dest.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{dest.name}.", dir=dest.parent) as beside:
        folder = Path(beside) / dest.name
        folder.mkdir()
        for path in paths:
            dataset.place(path, folder)
        rows = dataset.finish(folder)
        if dest.exists() and any(dest.iterdir()):
            (path,) = folder.iterdir()
            os.replace(path, dest / path.name)
        else:
            os.replace(folder, dest)
    return rows


def _find(source: Path, file: File) -> Path:
    """The path of a file, compressed as published or plain."""
    for name in (file.name, file.name.removesuffix(".gz")):
        if (source / name).is_file():
            return source / name
    raise ValueError(f"{source / file.name}: no such file; it is published at {file.urls[0]}")


def _verify(dataset: Dataset, file: File, path: Path) -> None:
    checksum = dataset.checksum(path)
    require(
        checksum == file.checksum,
        f"{path}: its content has the checksum {checksum}, the published file {file.checksum}",
    )


def fetch(dataset: Dataset, folder: Path, mirror: Optional[str] = None) -> None:
    """Download the files that `folder` lacks, and verify them.

    Raises:
        ValueError: no address gives a file; the message says what to fetch by hand.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for index, file in enumerate(dataset.files):
        urls = file.urls if mirror is None else (f"{mirror.rstrip('/')}/{quote(file.name)}",)
        failures = [] if (folder / file.name).is_file() else _fetch_one(dataset, file, urls, folder)
        if failures:
            missing = "\n".join(f"  {f.name}  {' or '.join(f.urls)}" for f in dataset.files[index:])
            raise ValueError(
                f"cannot download {file.name}: {'; '.join(failures)}\n"
                "Run this again later to continue where it broke off; or fetch by hand\n"
                f"{missing}\ninto {folder}, and run this again."
            )


def _fetch_one(dataset: Dataset, file: File, urls: Tuple[str, ...], folder: Path) -> List[str]:
    """Download a file from the first address that has it; the failures, or none on success."""
    path, failures, left = folder / file.name, [], list(urls)
    while left:
        url = left.pop(0)
        resumed = part_of(path).exists()
        try:
            download(url, path)
        except (OSError, HTTPException, ValueError) as error:  # ValueError: a bad address
            reason = error.reason if type(error) is URLError else error
            failures.append(f"{url}: {reason}")
            continue
        try:
            _verify(dataset, file, path)
            return []
        except ValueError as error:
            failures.append(f"{url}: {error}")
            path.unlink()
            if resumed:  # the part may be of another file: try from the beginning
                left.insert(0, url)
    return failures
