"""Read piano rolls: which of the 88 keys sound at each time step."""

import io
import pickle
from pathlib import Path
from typing import Any, Callable, ClassVar, Dict, List, Optional

import numpy as np

from kron_plugin.checks import SPLITS, require

KEYS = 88
LOWEST_NOTE = 21  # MIDI's number of a piano's A0
SHARED_STEPS = 1 << 16  # time steps that even a small pickle may have

Rolls = Dict[str, List[np.ndarray]]  # split -> sequences of shape (T, 88), 0 or 1


def load_rolls(folder: Path, name: Optional[str] = None) -> Rolls:
    """The sequences of every split, from one of Boulanger-Lewandowski's pickles.

    Args:
        folder: the folder of the pickles.
        name: a pickle's name without its ending; None if there is only one.

    Raises:
        ValueError: the data are missing or of another kind; the message names the file and says
            what was expected.
    """
    require(
        folder.is_dir(),
        f"{folder}: no such folder; expected one with a .pickle of piano rolls, or MIDI files",
    )
    found = sorted(folder.glob("*.pickle"))
    if name is not None:
        path = folder / f"{name}.pickle"
        names = ", ".join(repr(p.stem) for p in found) or "none"
        require(path.is_file(), f"--music-set {name!r}: {path} is missing; the folder has {names}")
    else:
        names = ", ".join(p.name for p in found)
        require(len(found) > 0, f"{folder}: holds neither a .pickle of piano rolls nor MIDI files")
        require(
            len(found) == 1,
            f"{folder}: expected one .pickle, found {names}; choose one by --music-set NAME",
        )
        path = found[0]
    return {
        split: [_roll(steps, f"{path}: {split} sequence {i}") for i, steps in enumerate(sequences)]
        for split, sequences in _sequences(path).items()
    }


def _sequences(path: Path) -> Dict[str, list]:
    data = read_plain_pickle(path)
    splits = ", ".join(SPLITS)
    require(isinstance(data, dict), f"{path}: expected a dict of {splits}")
    for split in SPLITS:
        require(
            isinstance(data.get(split), (list, tuple)) and len(data[split]) > 0,
            f"{path}: the split '{split}' has no sequences; expected {splits}, each a list",
        )
    steps = sum(len(s) for split in SPLITS for s in data[split] if isinstance(s, (list, tuple)))
    # A step takes at least a byte, unless the file refers to the same sequence many times.
    most = max(SHARED_STEPS, path.stat().st_size)
    require(
        steps <= most, f"{path}: has {steps:,} time steps in so few bytes; the limit is {most:,}"
    )
    return {split: data[split] for split in SPLITS}


def _roll(steps: Any, where: str) -> np.ndarray:
    require(isinstance(steps, (list, tuple)), f"{where}: expected a list of time steps")
    roll = np.zeros((len(steps), KEYS), dtype=np.uint8)
    for t, notes in enumerate(steps):
        require(
            isinstance(notes, (list, tuple)) and len(notes) <= KEYS,
            f"{where}, step {t}: expected a tuple of notes, at most {KEYS}",
        )
        for note in notes:
            if not isinstance(note, int) or not 0 <= note - LOWEST_NOTE < KEYS:
                # The message must stay short: a value may be nested or have any number of digits.
                small = isinstance(note, int) and abs(note) < 1 << 16
                shown = note if small else f"a {type(note).__name__}"
                raise ValueError(
                    f"{where}, step {t}: {shown} is no note of a piano; expected 21 to 108"
                )
            roll[t, note - LOWEST_NOTE] = 1
    return roll


def _load_set(unpickler: pickle._Unpickler) -> None:
    raise pickle.UnpicklingError("it holds a set")


def _load_keys(opcode: bytes, keys: slice) -> Callable[[Any], None]:
    """A loader of a dict's keys, in this slice of the stack; it refuses keys other than strings."""
    load = pickle._Unpickler.dispatch[opcode[0]]

    def checked(unpickler: Any) -> None:
        if not all(isinstance(key, str) for key in unpickler.stack[keys]):
            raise pickle.UnpicklingError("it holds a dict whose keys are not strings")
        load(unpickler)

    return checked


class _PlainUnpickler(pickle._Unpickler):
    """Accepts containers, numbers and strings; refuses any name of a class or function.

    It extends the unpickler written in Python, which takes a second for the largest published file.
    In the one written in C nine damaged bytes can fill gigabytes of memory (CPython issue 115952).
    Only strings are hashed: a hundred bytes can make a tuple whose hash takes for ever.
    """

    dispatch: ClassVar[Dict[int, Any]] = {
        **pickle._Unpickler.dispatch,
        **dict.fromkeys((pickle.EMPTY_SET[0], pickle.FROZENSET[0]), _load_set),
        pickle.DICT[0]: _load_keys(pickle.DICT, slice(0, None, 2)),
        pickle.SETITEM[0]: _load_keys(pickle.SETITEM, slice(-2, -1)),
        pickle.SETITEMS[0]: _load_keys(pickle.SETITEMS, slice(0, None, 2)),
    }

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it refers to {module}.{name}, which could run code")


def read_plain_pickle(path: Path) -> Any:
    """The data in a pickle of plain Python containers; no code in it is ever run.

    Raises:
        ValueError: the file is not a pickle, or holds more than plain data.
    """
    content = path.read_bytes()
    try:
        return _PlainUnpickler(io.BytesIO(content), encoding="latin1").load()
    except Exception as error:  # a damaged pickle can raise nearly any error
        raise ValueError(f"{path}: not a pickle of plain data: {error}") from error
