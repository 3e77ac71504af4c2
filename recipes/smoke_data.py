"""Make the small data of a recipe's smoke profile: `smoke_data.py RECIPE FOLDER`."""

import pickle
import sys
from pathlib import Path

import numpy as np

from kron_plugin.files import atomic_write


def music(folder: Path) -> None:
    """Rising thirds in several keys, in the format of Boulanger-Lewandowski's pickles."""

    def piece(key: int, steps: int) -> list:
        return [(key + t % 12, key + 4 + t % 12) for t in range(steps)]

    counts = {"train": 40, "valid": 8, "test": 8}
    rolls = {split: [piece(40 + i % 8, 20 + i) for i in range(n)] for split, n in counts.items()}
    _write(folder / "JSB Chorales.pickle", pickle.dumps(rolls))


def pixel_mnist(folder: Path) -> None:
    """Images of 16 pixels, a bright one among noise telling the digit, as IDX files."""
    rng = np.random.default_rng(1)
    for part, count in (("train", 1050), ("t10k", 100)):
        labels = rng.integers(0, 10, count)
        images = rng.integers(0, 40, (count, 4, 4))
        images.reshape(count, 16)[np.arange(count), labels] = 255
        _write(folder / f"{part}-images-idx3-ubyte", _idx(images))
        _write(folder / f"{part}-labels-idx1-ubyte", _idx(labels))


def _idx(array: np.ndarray) -> bytes:
    sizes = b"".join(int(n).to_bytes(4, "big") for n in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes()


def char_lm(folder: Path) -> None:
    """Sentences of a small grammar."""
    rng = np.random.default_rng(1)
    words = [["the", "a"], ["cat", "dog", "bird"], ["sees", "hears"], ["the", "a"], ["mat", "tree"]]
    for split, count in (("train", 2000), ("valid", 100), ("test", 100)):
        lines = (" ".join(rng.choice(choice) for choice in words) for _ in range(count))
        _write(folder / f"{split}.txt", ("\n".join(lines) + "\n").encode())


def _write(path: Path, content: bytes) -> None:
    with atomic_write(path) as unfinished:
        unfinished.write_bytes(content)


if __name__ == "__main__":
    recipe, target = sys.argv[1], Path(sys.argv[2])
    target.mkdir(parents=True, exist_ok=True)
    {"music": music, "pixel_mnist": pixel_mnist, "char_lm": char_lm}[recipe](target)
