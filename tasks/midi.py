"""Piano rolls from MIDI files, on a grid that follows the beat."""

import os
from pathlib import Path
from typing import List, NamedTuple

import numpy as np
from pretty_midi import Instrument, Note, PrettyMIDI

from kron_plugin.checks import require
from kron_plugin.files import atomic_write

from .midi_notes import Notes, read_notes
from .rolls import KEYS, LOWEST_NOTE

SUFFIXES = (".mid", ".midi")
MAX_BYTES = 1 << 20  # a score takes a few thousand bytes
MAX_BEATS = 36_000  # two hours at 300 beats a minute; it keeps rolls small
MAX_STEPS_PER_BEAT = 96
TICKS_PER_STEP = 120  # in written files; a beat has at most 32,767 ticks


class Reading(NamedTuple):
    """The content of a MIDI file.

    roll: shape (T, 88), uint8, 0 or 1. remark: a message on what was left out, or "".
    """

    roll: np.ndarray
    remark: str


def midi_files(folder: Path) -> List[Path]:
    """The MIDI files in a folder and all folders below it, always in the same order."""
    found, seen = [], set()
    for place, folders, names in os.walk(folder, followlinks=True):
        if os.path.realpath(place) in seen:  # a link leads here again
            folders.clear()
            continue
        seen.add(os.path.realpath(place))
        folders.sort()
        found += [path for name in names if (path := Path(place, name)).suffix.lower() in SUFFIXES]
    return sorted(filter(Path.is_file, found), key=lambda p: p.relative_to(folder).as_posix())


def read_midi(path: Path, steps_per_beat: int) -> Reading:
    """The piano roll of a MIDI file, from its beginning to the end of its last note.

    A note sounds from the grid point nearest to its beginning to the one nearest to its end, and at
    least one step. Drums and the pedal are ignored.

    Args:
        steps_per_beat: time steps in a quarter note.

    Raises:
        ValueError: the file gives no roll; the message names it and says why.
    """
    try:
        return parse_midi(head(path), steps_per_beat)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def head(path: Path) -> bytes:
    """A file's first `MAX_BYTES` + 1 bytes; the last of them shows that the file is too large."""
    with path.open("rb") as file:
        return file.read(MAX_BYTES + 1)


def parse_midi(content: bytes, steps_per_beat: int) -> Reading:
    """Like `read_midi`, for the content of a file; its error messages do not name the file."""
    require(len(content) > 0, "the file is empty")
    require(len(content) <= MAX_BYTES, f"the file is larger than {MAX_BYTES:,} bytes, the limit")
    found = read_notes(content)
    keys = found.notes[:, 0] - LOWEST_NOTE
    on_piano = (keys >= 0) & (keys < KEYS)
    left_out = list(found.left_out)
    if outside := int((~on_piano).sum()):
        left_out.append(f"{outside} notes outside {LOWEST_NOTE} to {LOWEST_NOTE + KEYS - 1}")
    remark = "left out: " + ", ".join(left_out) if left_out else ""
    require(bool(on_piano.any()), f"no notes of a piano; {remark or 'at most drums'}")
    roll = _roll(found._replace(notes=found.notes[on_piano]), steps_per_beat)
    require(len(roll) > 1, "lasts one time step, after which there is nothing to predict")
    return Reading(roll, remark)


def _roll(found: Notes, steps_per_beat: int) -> np.ndarray:
    beats = int(found.notes[:, 2].max()) / found.ticks_per_beat
    require(beats <= MAX_BEATS, f"lasts {beats:,.0f} beats; the limit is {MAX_BEATS:,}")
    # Whole numbers, so that the middle between two steps always rounds up.
    halves = found.notes[:, 1:] * (2 * steps_per_beat) + found.ticks_per_beat
    first, last = (halves // (2 * found.ticks_per_beat)).T
    last = np.maximum(last, first + 1)
    keys, steps = found.notes[:, 0] - LOWEST_NOTE, last.max()
    roll = np.zeros((steps, KEYS), dtype=np.uint8)
    for key in np.unique(keys):
        begun, ended = (np.bincount(at[keys == key], minlength=steps + 1) for at in (first, last))
        roll[:, key] = np.cumsum(begun - ended)[:-1] > 0
    return roll


def write_midi(roll: np.ndarray, steps_per_beat: int, path: Path) -> int:
    """Write a roll, shape (T, 88), as a MIDI file of a piano at 120 beats a minute, and return its
    number of notes. Consecutive steps of a key are one note."""
    song = PrettyMIDI(resolution=steps_per_beat * TICKS_PER_STEP, initial_tempo=120)
    piano = Instrument(program=0)
    changes = np.diff(np.pad(roll.astype(np.int8), ((1, 1), (0, 0))), axis=0)
    seconds = 0.5 / steps_per_beat
    for key in range(KEYS):
        begins, ends = (np.flatnonzero(changes[:, key] == sign) for sign in (1, -1))
        for begin, end in zip(begins, ends, strict=True):
            note = Note(80, key + LOWEST_NOTE, begin * seconds, end * seconds)
            piano.notes.append(note)
    song.instruments.append(piano)
    with atomic_write(path) as unfinished:
        song.write(str(unfinished))
    return len(piano.notes)
