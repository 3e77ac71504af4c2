"""Read MNIST's IDX files, plain or compressed, and check that they are the published ones."""

import hashlib
from math import prod
from pathlib import Path
from typing import Optional, Tuple

import numpy as np

from kron_plugin.checks import require
from kron_plugin.packed import blocks

# MD5 of the decompressed files. The archives' own checksums vary, because gzip stores a date.
PUBLISHED = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
UNSIGNED_BYTE = 8
VALID_IMAGES = 5000  # of the training files, kept to validate by default


def load_images(folder: Path, part: str, verify: bool = True) -> Tuple[np.ndarray, np.ndarray]:
    """Images of shape (M, pixels) and labels of shape (M,), both uint8.

    Args:
        part: "train" or "t10k", as the files are called.
        verify: accept only the published files, by checksum.

    Raises:
        ValueError: a file is missing, damaged or not the published one; the message names it.
    """
    require(folder.is_dir(), f"{folder}: no such folder; expected MNIST's four IDX files in it")
    images_path, images = _read(folder, f"{part}-images-idx3-ubyte", 3, verify)
    labels_path, labels = _read(folder, f"{part}-labels-idx1-ubyte", 1, verify)
    require(
        len(images) == len(labels),
        f"{images_path} has {len(images)} images, but {labels_path} has {len(labels)} labels",
    )
    require(images.size > 0, f"{images_path}: holds no images, or images of no pixels")
    require(labels.max() <= 9, f"{labels_path}: has the label {labels.max()}; expected 0 to 9")
    return images.reshape(len(images), -1), labels


def _read(folder: Path, name: str, dimensions: int, verify: bool) -> Tuple[Path, np.ndarray]:
    path = next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None)
    if path is None:
        raise ValueError(f"{folder / name}: no such file, and no {name}.gz beside it")
    content = b"".join(blocks(path))
    if verify:
        checksum = hashlib.md5(content, usedforsecurity=False).hexdigest()
        require(
            checksum == PUBLISHED[name],
            f"{path}: its content has the checksum {checksum}, the published file"
            f" {PUBLISHED[name]}; fetch it again, or add --unverified for data of your own",
        )
    return path, _parse(path, content, dimensions)


def _parse(path: Path, content: bytes, dimensions: int) -> np.ndarray:
    """The array in an IDX file: two zero bytes, type, number of dimensions, sizes, values."""
    header = 4 + 4 * dimensions
    magic: Optional[bytes] = content[:4] if len(content) >= header else None
    expected = bytes([0, 0, UNSIGNED_BYTE, dimensions])
    require(
        magic == expected,
        f"{path}: begins with {content[:4].hex(' ') or 'nothing'}; expected an IDX file that begins"
        f" with {expected.hex(' ')} and has a header of {header} bytes",
    )
    shape = tuple(int(n) for n in np.frombuffer(content, ">u4", dimensions, 4))
    require(
        len(content) == header + prod(shape),
        f"{path}: holds {len(content) - header} values, its header promises {prod(shape)}",
    )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)
