"""The notes in a MIDI file, read as tolerantly as players read it (Standard MIDI Files 1.0).

The reader skips all other events by their length and never interprets them, so that they cannot
make a file unreadable: mido refuses files for the values of events that no roll needs. pretty_midi
ends overlapping notes of a key together.
"""

import re
import struct
from collections import defaultdict, deque
from contextlib import suppress
from typing import Deque, Dict, Iterator, List, NamedTuple, Tuple

import numpy as np

from kron_plugin.checks import require

DRUM_CHANNEL = 9  # counted from 0, as in General MIDI
NOTE_OFF, NOTE_ON, PROGRAM, PRESSURE = 0x8, 0x9, 0xC, 0xD  # upper halves of status bytes
META, END_OF_TRACK = 0xFF, 0x2F
SYSTEM_EXCLUSIVE = (0xF0, 0xF7)
SYSTEM_BYTES = {0xF1: 1, 0xF2: 2, 0xF3: 1}  # data bytes of other system messages; else 0
LARGEST = (1 << 28) - 1  # the largest number that a file may have

Strokes = Dict[Tuple[int, int], List[Tuple[int, bool]]]  # (channel, key) -> (tick, whether struck)


class Notes(NamedTuple):
    """The notes of a file.

    notes: shape (notes, 3): key, first tick, last tick. left_out: the other content, as a message
    lists it.
    """

    notes: np.ndarray
    ticks_per_beat: int
    left_out: List[str]


def read_notes(content: bytes) -> Notes:
    """All notes of a file that last at least a tick, except those of drums.

    Raises:
        ValueError: it is not a MIDI file, or has no beats.
    """
    if content[:4] == b"RIFF" and content[8:12] == b"RMID":
        content = content[max(content.find(b"MThd"), 0) :]
    require(content.startswith(b"MThd"), "not a MIDI file: it does not begin with MThd")
    require(len(content) >= 14, "truncated: the file ends before its tracks do")
    form, announced, ticks_per_beat = struct.unpack(">HHh", content[8:14])
    require(ticks_per_beat > 0, "counts time in frames, not in ticks per quarter note")
    _, *chunks = _chunks(content)
    tracks = [_Track(data) for name, data in chunks if name == b"MTrk"]
    require(len(tracks) > 0, "has no tracks")
    require(
        form != 2 or sum(bool(track.strokes) for track in tracks) < 2,
        "asynchronous: its tracks do not belong together in time",
    )
    by_key = [(key, s) for track in tracks for (_, key), s in track.strokes.items()]
    notes = [(key, *span) for key, s in by_key for span in _spans(s) if span[0] < span[1]]
    struck = sum(on for _, s in by_key for _, on in s)
    counts = {
        "notes of no length or without an end": struck - len(notes),
        "chunks other than tracks": len(chunks) - len(tracks),
        "tracks that the header announces": max(announced - len(tracks), 0),
        "ends of tracks that break off": sum(not track.ended for track in tracks),
        "bytes behind the ends of tracks": sum(track.ended and track.rest for track in tracks),
    }
    left_out = [f"{count} {what}" for what, count in counts.items() if count]
    return Notes(np.array(notes, dtype=np.int64).reshape(-1, 3), ticks_per_beat, left_out)


def _chunks(content: bytes) -> Iterator[Tuple[bytes, bytes]]:
    """Names and data of the chunks of a file.

    A chunk has a wrong length if neither the file ends nor another chunk begins at its end. Such a
    chunk extends to the next track.
    """
    begin = 0
    while begin + 8 <= len(content):
        data = begin + 8
        end = data + int.from_bytes(content[begin + 4 : data], "big")
        if end != len(content) and not _begins_chunk(content[end : end + 8], len(content) - end):
            end = content.find(b"MTrk", data)
            end = len(content) if end < 0 else end
        yield content[begin : begin + 4], content[data:end]
        begin = end


def _begins_chunk(head: bytes, space: int) -> bool:
    if head[:4] == b"MTrk":
        return True
    named = re.fullmatch(rb"[ -~]{4}....", head, re.DOTALL)
    return bool(named) and len(head) + int.from_bytes(head[4:], "big") <= space


class _Track:
    """The strokes and releases of keys in a track, as far as the track can be read.

    ended: whether its end is marked. rest: how many bytes were not read.
    """

    def __init__(self, data: bytes) -> None:
        self.strokes: Strokes = defaultdict(list)
        self.ended, self.rest = False, 0
        with suppress(IndexError, OverflowError):  # an event breaks off, or a number is too large
            self._read(data)

    def _read(self, data: bytes) -> None:
        at = tick = status = 0
        while not self.ended:
            delta, at = (data[at], at + 1) if data[at] < 0x80 else _number(data, at)
            tick += delta
            byte = data[at]
            if byte == META or byte in SYSTEM_EXCLUSIVE:
                length, begin = _number(data, at + 1 + (byte == META))
                self.ended = byte == META and data[at + 1] == END_OF_TRACK
                at = begin + length
            elif byte > 0xF0:
                at += 1 + SYSTEM_BYTES.get(byte, 0)
            else:
                if byte >= 0x80:
                    status, at = byte, at + 1  # else the last message's status holds
                kind, channel = status >> 4, status & 0xF
                if kind == 0:
                    return
                if kind in (NOTE_OFF, NOTE_ON) and channel != DRUM_CHANNEL:
                    struck = kind == NOTE_ON and data[at + 1] > 0
                    self.strokes[channel, data[at]].append((tick, struck))
                at += 1 if kind in (PROGRAM, PRESSURE) else 2
        self.rest = max(len(data) - at, 0)


def _number(data: bytes, at: int) -> Tuple[int, int]:
    """A number, seven bits a byte, and where it ends."""
    number = 0
    while True:
        byte, at = data[at], at + 1
        number = number << 7 | byte & 0x7F
        if byte < 0x80:
            return number, at
        if number > LARGEST:
            raise OverflowError


def _spans(strokes: List[Tuple[int, bool]]) -> List[Tuple[int, int]]:
    """First and last ticks of the notes of one key, with one release for each stroke."""
    held: Deque[int] = deque()
    spans: List[Tuple[int, int]] = []
    for tick, struck in strokes:
        if struck:
            held.append(tick)
        elif held:
            spans.append((held.popleft(), tick))
    release_missing = held and spans and held[0] < spans[-1][1]
    return _ended_together(strokes) if release_missing else spans


def _ended_together(strokes: List[Tuple[int, bool]]) -> List[Tuple[int, int]]:
    """The same where releases are missing: a release ends all notes that began before it."""
    held, spans = [], []
    for tick, struck in strokes:
        if struck:
            held.append(tick)
            continue
        ended = [begin for begin in held if begin < tick] or held
        spans += [(begin, tick) for begin in ended]
        held = held[len(ended) :]
    return spans
