"""Piano rolls from MIDI files, on a grid that follows the beat."""

import io
import os
import re
import warnings
from pathlib import Path
from typing import List, NamedTuple

import numpy as np
from mido import MetaMessage, MidiFile
from pretty_midi import Instrument, Note, PrettyMIDI

from kron_plugin.checks import require
from kron_plugin.files import finished

from .rolls import KEYS, LOWEST_NOTE

SUFFIXES = (".mid", ".midi")
MAX_BYTES = (
    1 << 20
)  # scores take some thousand bytes; the parsers take hundreds of times the memory
MAX_HOURS = 2.0
MAX_BEATS = 36_000  # two hours at 300 beats a minute: whatever the tempo, rolls stay small
MAX_STEPS_PER_BEAT = 96
DRUM_CHANNEL = 9  # counted from 0, as in General MIDI
ONE_SECOND = 1_000_000  # in microseconds, as MIDI states a tempo


class Reading(NamedTuple):
    """What a MIDI file gave.

    roll: shape (T, 88), uint8, 0 or 1. remark: which notes were left out, or nothing.
    """

    roll: np.ndarray
    remark: str


def midi_files(folder: Path) -> List[Path]:
    """The MIDI files in a folder and all folders below it, always in the same order."""
    found, seen = [], set()
    for place, folders, names in os.walk(folder, followlinks=True):
        if os.path.realpath(place) in seen:  # linked from elsewhere, or from below itself
            folders.clear()
            continue
        seen.add(os.path.realpath(place))
        folders.sort()
        found += [path for name in names if (path := Path(place, name)).suffix.lower() in SUFFIXES]
    return sorted(filter(Path.is_file, found), key=lambda p: p.relative_to(folder).as_posix())


def read_midi(path: Path, steps_per_beat: int) -> Reading:
    """The piano roll of a MIDI file, from its beginning to the end of its last note.

    A note sounds from the grid point nearest to its beginning to the one nearest to its end, and at
    least one step. Drums do not count, nor does the pedal.

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
    """As much of a file as is ever read; more than the limit only tells that it is too large."""
    with path.open("rb") as file:
        return file.read(MAX_BYTES + 1)


def parse_midi(content: bytes, steps_per_beat: int) -> Reading:
    """Like `read_midi`, for the content of a file; the message of its errors does not name it."""
    require(len(content) > 0, "the file is empty")
    require(content.startswith(b"MThd"), "not a MIDI file: it does not begin with MThd")
    require(len(content) <= MAX_BYTES, f"the file is larger than {MAX_BYTES:,} bytes, the limit")
    # No message looks so; the parser would make one number of it, in quadratic time.
    require(not re.search(rb"[\x80-\xff]{1024}", content), "damaged: a number without end")
    try:
        return _read(MidiFile(file=io.BytesIO(content)), steps_per_beat)
    except EOFError as error:
        raise ValueError("truncated: the file ends before its tracks do") from error
    except Exception as error:  # the parsers raise whatever a damaged file makes them stumble over
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(reason) from error


def _read(midi: MidiFile, steps_per_beat: int) -> Reading:
    _require_sane(midi)
    begun = sum(
        message.type == "note_on" and message.velocity > 0 and message.channel != DRUM_CHANNEL
        for track in midi.tracks
        for message in track
    )
    notes = _notes(midi)
    keys = [note for note in notes if 0 <= note.pitch - LOWEST_NOTE < KEYS]
    left_out = [
        f"{count} {what}"
        for count, what in (
            (begun - len(notes), "notes of no length or without an end"),
            (len(notes) - len(keys), f"notes outside {LOWEST_NOTE} to {LOWEST_NOTE + KEYS - 1}"),
        )
        if count
    ]
    remark = "left out: " + ", ".join(left_out) if left_out else ""
    require(len(keys) > 0, f"no notes of a piano; {remark or 'at most drums'}")
    roll = _roll(keys, steps_per_beat)
    require(len(roll) > 1, "lasts one time step, after which there is nothing to predict")
    return Reading(roll, remark)


def _require_sane(midi: MidiFile) -> None:
    """Refuse what has no beats, and what would take gigabytes."""
    require(len(midi.tracks) > 0, "has no tracks")
    require(midi.ticks_per_beat > 0, "counts time in frames, not in ticks per quarter note")
    hours = midi.length / 3600
    beats = max(sum(message.time for message in track) for track in midi.tracks)
    beats /= midi.ticks_per_beat
    require(
        hours <= MAX_HOURS and beats <= MAX_BEATS,
        f"lasts {hours:.1f} hours and {beats:,.0f} beats; the limits are {MAX_HOURS:g} hours and"
        f" {MAX_BEATS:,} beats",
    )


def _notes(midi: MidiFile) -> List[Note]:
    """All notes but those of drums, their times in beats."""
    # At 60 beats a minute, the seconds of pretty_midi are beats.
    for track in midi.tracks:
        for message in track:
            if message.type == "set_tempo":
                message.tempo = ONE_SECOND
    midi.tracks[0].insert(0, MetaMessage("set_tempo", tempo=ONE_SECOND))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on tempo changes in odd places: there are none any more
        instruments = PrettyMIDI(mido_object=midi).instruments
    return [note for i in instruments if not i.is_drum for note in i.notes]


def _roll(notes: List[Note], steps_per_beat: int) -> np.ndarray:
    spans = np.array([(note.start, note.end) for note in notes]) * steps_per_beat
    first, last = np.floor(spans + 0.5).astype(int).T
    last = np.maximum(last, first + 1)
    roll = np.zeros((last.max(), KEYS), dtype=np.uint8)
    for note, begin, end in zip(notes, first, last, strict=True):
        roll[begin:end, note.pitch - LOWEST_NOTE] = 1
    return roll


def write_midi(roll: np.ndarray, steps_per_beat: int, path: Path) -> int:
    """Write a roll, shape (T, 88), as a MIDI file of a piano at 120 beats a minute, and return how
    many notes it has. A key that sounds in steps on end is one note."""
    song = PrettyMIDI(initial_tempo=120)
    piano = Instrument(program=0)
    changes = np.diff(np.pad(roll.astype(np.int8), ((1, 1), (0, 0))), axis=0)
    seconds = 0.5 / steps_per_beat
    for key in range(KEYS):
        begins, ends = (np.flatnonzero(changes[:, key] == sign) for sign in (1, -1))
        for begin, end in zip(begins, ends, strict=True):
            note = Note(80, key + LOWEST_NOTE, begin * seconds, end * seconds)
            piano.notes.append(note)
    song.instruments.append(piano)
    with finished(path) as unfinished:
        song.write(str(unfinished))
    return len(piano.notes)
