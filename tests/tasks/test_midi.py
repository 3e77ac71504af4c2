import json
import logging
import os
import random
import shutil
import time
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from mido import Message, MetaMessage, MidiFile, MidiTrack
from pretty_midi import Instrument, Note, PrettyMIDI

import kron_plugin

kron_plugin.register()

from kron_plugin.cli.datasets import DATASETS  # noqa: E402
from kron_plugin.tasks import midi_set  # noqa: E402
from kron_plugin.tasks.midi import midi_files, parse_midi, read_midi, write_midi  # noqa: E402
from kron_plugin.tasks.midi_set import load_midi, prepare_midi  # noqa: E402
from kron_plugin.tasks.music import MusicConfig, MusicTask  # noqa: E402

from ..conftest import ROOT  # noqa: E402

REAL = Path(os.environ.get("KRON_DATA", ROOT.parent / "shared" / "data")) / "music"
THIRDS = (0.5, 0.25, 0.25)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KRON_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "rolls"


def write(path, notes, drums=(), tempo=100.0):
    """A MIDI file of (key, begin, end), in beats."""
    midi = PrettyMIDI(initial_tempo=tempo)
    for is_drum, part in ((False, notes), (True, drums)):
        instrument = Instrument(0, is_drum=is_drum)
        for key, begin, end in part:
            instrument.notes.append(Note(90, key, begin * 60 / tempo, end * 60 / tempo))
        midi.instruments.append(instrument)
    path.parent.mkdir(parents=True, exist_ok=True)
    midi.write(str(path))
    return path


def scale(path, first, notes):
    return write(path, [(first + i % 12, i, i + 1) for i in range(notes)])


def messages(*events, ticks_per_beat=480):
    """A MIDI file of one track, as bytes."""
    file = BytesIO()
    midi = MidiFile(ticks_per_beat=ticks_per_beat, tracks=[MidiTrack(events)])
    midi.save(file=file)
    return file.getvalue()


def note_on(key, ticks=0):
    return Message("note_on", note=key, velocity=64, time=ticks)


def note_off(key, ticks):
    return Message("note_off", note=key, time=ticks)


TWO_NOTES = messages(note_on(60), note_off(60, 480), note_on(62), note_off(62, 480))


@pytest.mark.parametrize("tempo", [31.0, 100.0, 240.0])
def test_the_grid_follows_the_beat(tmp_path, tempo):
    path = write(tmp_path / "a.mid", [(21, 0, 1), (60, 0.5, 2.02), (108, 1.9, 1.95)], tempo=tempo)
    roll, remark = read_midi(path, 2)
    expected = np.zeros((5, 88), np.uint8)
    expected[0:2, 0] = 1
    expected[1:4, 39] = 1
    expected[4, 87] = 1  # shorter than a step: one step
    assert np.array_equal(roll, expected)
    assert remark == ""
    assert len(read_midi(path, 4).roll) == 9


def test_tempo_changes_do_not_bend_the_grid():
    slow, fast = (MetaMessage("set_tempo", tempo=t) for t in (2_000_000, 100_000))
    plain = (note_on(60), note_off(60, 480), note_on(64, 480), note_off(64, 480))
    changed = (slow, plain[0], plain[1], fast, *plain[2:])
    assert np.array_equal(
        parse_midi(messages(*plain), 4).roll, parse_midi(messages(*changed), 4).roll
    )


def test_drums_and_odd_notes_are_left_out_and_counted(tmp_path):
    path = write(tmp_path / "a.mid", [(60, 0, 2)], drums=[(40, 0, 9)])
    assert read_midi(path, 2).roll.sum() == len(read_midi(path, 2).roll) == 4
    endless = (note_on(72), note_on(70), note_off(70, 0))
    outside = (note_on(20), note_off(20, 480), note_on(109), note_off(109, 480))
    reading = parse_midi(messages(*endless, *outside, note_on(50), note_off(50, 960)), 1)
    assert np.flatnonzero(reading.roll.any(0)).tolist() == [50 - 21]
    assert reading.remark == (
        "left out: 2 notes of no length or without an end, 2 notes outside 21 to 108"
    )


def sounding(content, steps_per_beat=2):
    """{key: steps in which it sounds}, and the remark."""
    roll, remark = parse_midi(content, steps_per_beat)
    return {
        int(k) + 21: np.flatnonzero(roll[:, k]).tolist() for k in roll.any(0).nonzero()[0]
    }, remark


FIRST, SECOND = b"\0\x90\x3c\x40\x83\x60\x80\x3c\x40", b"\0\x90\x3e\x40\x83\x60\x80\x3e\x40"
WAIT, END = b"\x83\x60\xff\1\0", b"\0\xff\x2f\0"


def chunk(data, name=b"MTrk", off_by=0):
    return name + (len(data) + off_by).to_bytes(4, "big") + data


def midi(*chunks, announced=None, form=1, more=b""):
    announced = len(chunks) if announced is None else announced
    header = b"".join(n.to_bytes(2, "big") for n in (form, announced, 480))
    return chunk(header + more, b"MThd") + b"".join(chunks)


def among(*events):
    """Two notes with other events before them, between them and after them."""
    return midi(
        chunk(b"".join(events) + FIRST + b"".join(events) + SECOND + b"".join(events) + END)
    )


def wrapped(content):
    data = b"data" + len(content).to_bytes(4, "little") + content
    riff = b"RMID" + data + b"LIST\4\0\0\0INFO"
    return b"RIFF" + len(riff).to_bytes(4, "little") + riff


ONE, OTHER = FIRST + END, WAIT + SECOND + END
ALIEN = chunk(b"anything", b"XFIH")
# Every file has the two notes of TWO_NOTES, and players play it.
GOOD = {
    "as it should be": (TWO_NOTES, ""),
    "too few tracks announced": (midi(chunk(ONE), chunk(OTHER), announced=1), ""),
    "no tracks announced": (midi(chunk(ONE), chunk(OTHER), announced=0), ""),
    "too many tracks announced": (
        midi(chunk(ONE), chunk(OTHER), announced=3),
        "left out: 1 tracks that the header announces",
    ),
    "the first track too long": (midi(chunk(ONE, off_by=5), chunk(OTHER)), ""),
    "the first track too short": (midi(chunk(ONE, off_by=-5), chunk(OTHER)), ""),
    "the last track too long": (midi(chunk(ONE), chunk(OTHER, off_by=5)), ""),
    "the last track far too long": (midi(chunk(ONE), chunk(OTHER, off_by=1 << 30)), ""),
    "the last track too short": (midi(chunk(ONE), chunk(OTHER, off_by=-5)), ""),
    "a long header": (midi(chunk(ONE), chunk(OTHER), more=b"more"), ""),
    "other chunks": (
        midi(ALIEN, chunk(ONE), chunk(b"MTrk", b"ABCD"), chunk(OTHER), ALIEN, announced=2),
        "left out: 3 chunks other than tracks",
    ),
    "bytes behind": (TWO_NOTES + bytes(9), "left out: 9 bytes behind the ends of tracks"),
    "a chunk padded": (
        midi(chunk(ONE) + b"\0", chunk(OTHER)),
        "left out: 1 bytes behind the ends of tracks",
    ),
    "no end of track": (
        midi(chunk(ONE), chunk(OTHER[:-4])),
        "left out: 1 ends of tracks that break off",
    ),
    "a wrapper": (wrapped(TWO_NOTES), "left out: 12 bytes behind the ends of tracks"),
    "one track of its own time": (midi(chunk(FIRST + SECOND + END), form=2), ""),
    "running status": (
        midi(chunk(FIRST + SECOND.replace(b"\x80\x3e\x40", b"\x90\x3e\0") + END)),
        "",
    ),
    "running status after a sysex": (
        midi(chunk(FIRST[:4] + b"\0\xf0\2\1\xf7" + b"\x83\x60\x3c\0" + SECOND + END)),
        "",
    ),
    "running status after text": (
        midi(chunk(FIRST[:4] + b"\0\xff\1\1x" + b"\x83\x60\x3c\0" + SECOND + END)),
        "",
    ),
    "a velocity above 127": (midi(chunk(b"\0\x90\x3c\xff" + FIRST[4:] + SECOND + END)), ""),
    "a release above 127": (midi(chunk(FIRST[:-1] + b"\xc0" + SECOND + END)), ""),
}
EVENTS = {
    "SMPTE offsets": [b"\0\xff\x54\5\xff" + b"\x7f" * 4, b"\0\xff\x54\0"],
    "key signatures": [b"\0\xff\x59\2\x0c\0", b"\0\xff\x59\2\0\7", b"\0\xff\x59\0"],
    "time signatures": [b"\0\xff\x58\2\4\2", b"\0\xff\x58\4\0\xff\0\0", b"\0\xff\x58\0"],
    "tempi": [b"\0\xff\x51\3\0\0\0", b"\0\xff\x51\2\7\7", b"\0\xff\x51\4\7\7\7\7"],
    "slow tempi": [b"\0\xff\x51\3\xff\xff\xff"],
    "other meta events": [b"\0\xff\0\1\0", b"\0\xff\x20\0", b"\0\xff\x7e\2\xff\xff"],
    "text": [b"\0\xff\1\4\xff\xfe\xfd\x80", b"\0\xff\5\4MTrk"],
    "controllers": [b"\0\xb0\x40\xff", b"\0\xb0\xff\xff"],
    "programs and pressure": [b"\0\xc0\xff", b"\0\xd0\xff", b"\0\xa0\x3c\xff", b"\0\xe0\xff\xff"],
    "sysex": [b"\0\xf0\3\1\2\3", b"\0\xf7\2\xf3\1", b"\0\xf0\0"],
    "system messages": [b"\0\xf1\1", b"\0\xf2\1\1", b"\0\xf3\1", b"\0\xf6", b"\0\xf8", b"\0\xf4"],
    "long numbers": [b"\x80\x80\x80\x80\0\xff\1\x80\x80\0"],
}
GOOD.update({name: (among(*events), "") for name, events in EVENTS.items()})


@pytest.mark.parametrize("name", GOOD)
def test_what_players_play_is_read(name):
    content, remark = GOOD[name]
    assert sounding(content) == ({60: [0, 1], 62: [2, 3]}, remark)


BROKEN = {
    "truncated": (TWO_NOTES[:-9], "1 notes of no length or without an end, 1 ends of tracks that"),
    "an endless number": (
        TWO_NOTES[:-13] + b"\xff" * 1_000_000,
        "1 ends of tracks that break off",
    ),
    "no status": (midi(chunk(FIRST + END), chunk(b"\0\x3c\x40" + FIRST)), "1 ends of tracks that"),
    "text that swallows the rest": (
        midi(chunk(FIRST + b"\0\xff\1\x7f" + SECOND + END)),
        "1 ends of",
    ),
    "notes after the end": (midi(chunk(FIRST + END + SECOND)), "9 bytes behind the ends of tracks"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_of_a_broken_file_is_taken_what_can_be_read(name):
    content, said = BROKEN[name]
    steps, remark = sounding(content)
    assert steps == {60: [0, 1]}
    assert remark.startswith("left out: ")
    assert said in remark


STROKES = {
    "twice at once": ("+0 +0 -1 -4", [(0, 4)], 0),
    "a short note in a long one": ("+0 +1 -2 -4", [(0, 4)], 0),
    "three, one in the other": ("+0 +1 +2 -3 -4 -5 +7 -8", [(0, 5), (7, 8)], 0),
    "struck as it is released": ("+0 +1 -1 -2", [(0, 2)], 0),
    "struck again without a release": ("+0 +1 +2 -3 +4 -5", [(0, 3), (4, 5)], 0),
    "a release lost": ("+0 +4 -5 +6 -7 +8 -9", [(0, 5), (6, 7), (8, 9)], 0),
    "a release too many": ("+0 -1 -2 +3 -4 -4", [(0, 1), (3, 4)], 0),
    "the last release lost": ("+0 +0 -1 -4 +6", [(0, 4)], 1),
    "no length": ("+0 -0 +1 -2", [(1, 2)], 1),
}


@pytest.mark.parametrize("name", STROKES)
def test_a_key_sounds_until_as_many_releases_as_strokes(name):
    strokes, beats, lost = STROKES[name]
    events, now = [], 0
    for stroke in strokes.split():
        make = note_on if stroke[0] == "+" else note_off
        events.append(make(60, (int(stroke[1:]) - now) * 480))
        now = int(stroke[1:])
    steps, remark = sounding(messages(*events), 1)
    assert steps == {60: [step for begin, end in beats for step in range(begin, end)]}
    assert remark == (f"left out: {lost} notes of no length or without an end" if lost else "")


@pytest.mark.parametrize("ticks_per_beat", [24, 48, 96, 120, 192, 480, 960])
@pytest.mark.parametrize("steps_per_beat", [2, 3, 4, 6, 12])
def test_equal_notes_have_equal_lengths(ticks_per_beat, steps_per_beat):
    """This also holds for notes that begin and end halfway between two steps."""
    half = ticks_per_beat // (2 * steps_per_beat)
    events = []
    for key in range(30, 90):
        events += [note_on(key, half), note_off(key, 2 * half)]
    steps, _ = sounding(messages(*events, ticks_per_beat=ticks_per_beat), steps_per_beat)
    # Note n begins 3 n + 1 half steps after the beginning; half a step rounds up.
    expected = [[(3 * n + 2) // 2] for n in range(60)]
    assert list(steps.values()) == expected


def long(beats, ticks_per_beat=480):
    ticks = beats * ticks_per_beat
    wait = [MetaMessage("text", time=min(ticks - t, 1 << 27)) for t in range(0, ticks, 1 << 27)]
    return messages(*wait, note_on(60), note_off(60, ticks_per_beat), ticks_per_beat=ticks_per_beat)


def test_a_piece_may_last_so_many_beats_however_fine_its_ticks():
    for beats, ticks_per_beat in ((400, 32767), (35_999, 480), (35_999, 32767)):
        roll, _ = parse_midi(long(beats, ticks_per_beat), 2)
        assert np.flatnonzero(roll.any(1)).tolist() == [2 * beats, 2 * beats + 1]
    # Silence after the last note does not count.
    silent = messages(note_on(60), note_off(60, 480), MetaMessage("text", time=480 * 100_000))
    assert len(parse_midi(silent, 2).roll) == 2


@pytest.mark.parametrize("steps_per_beat", [1, 2, 3, 96])
def test_a_roll_comes_back_from_the_file_it_was_written_to(tmp_path, steps_per_beat):
    roll = (np.random.RandomState(0).rand(50, 88) < 0.3).astype(np.uint8)
    roll[-1, 0] = 1
    notes = write_midi(roll, steps_per_beat, tmp_path / "a.mid")
    again, remark = read_midi(tmp_path / "a.mid", steps_per_beat)
    assert np.array_equal(again, roll)
    assert remark == ""
    heard = PrettyMIDI(str(tmp_path / "a.mid"))  # another reader
    assert len(heard.instruments[0].notes) == notes
    assert heard.get_end_time() == pytest.approx(50 * 0.5 / steps_per_beat)


BAD = {
    "empty": (b"", "the file is empty"),
    "text": (b"hello, I am a poem", "not a MIDI file: it does not begin with MThd"),
    "another format": (b"RIFF" + TWO_NOTES, "not a MIDI file"),
    "another wrapper": (b"RIFF\0\0\0\0WAVEdata", "not a MIDI file"),
    "an empty wrapper": (b"RIFF\0\0\0\0RMIDdata", "not a MIDI file"),
    "header only": (TWO_NOTES[:10], "truncated: the file ends before its tracks do"),
    "no tracks": (TWO_NOTES[:14], "has no tracks"),
    "truncated before notes": (TWO_NOTES[:25], "no notes of a piano; left out: 1 ends of tracks"),
    "no notes": (messages(), "no notes of a piano; at most drums"),
    "only drums": (
        messages(note_on(60).copy(channel=9), note_off(60, 480).copy(channel=9)),
        "no notes of a piano; at most drums",
    ),
    "no length": (
        messages(note_on(60), note_off(60, 0)),
        "no notes of a piano; left out: 1 notes of no length",
    ),
    "out of range": (messages(note_on(5), note_off(5, 480)), "left out: 1 notes outside 21 to 108"),
    "one step": (messages(note_on(60), note_off(60, 100)), "lasts one time step"),
    "too many beats": (long(36_000), "lasts 36,001 beats; the limit is 36,000"),
    "frames": (TWO_NOTES[:12] + b"\xe7\x28" + TWO_NOTES[14:], "counts time in frames"),
    "zero resolution": (TWO_NOTES[:12] + b"\0\0" + TWO_NOTES[14:], "counts time in frames"),
    "asynchronous": (midi(chunk(ONE), chunk(OTHER), form=2), "asynchronous: its tracks do not"),
    "too large": (TWO_NOTES + bytes(1 << 20), "larger than 1,048,576 bytes"),
    "endless number": (
        TWO_NOTES[:22] + b"\xff" * 1_000_000,
        "no notes of a piano; left out: 1 ends",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_refused_with_its_name_and_a_reason(tmp_path, name):
    content, reason = BAD[name]
    path = tmp_path / "song.mid"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"song\.mid: .*" + reason.replace(".", r"\.")):
        read_midi(path, 2)


def test_mutated_files_give_a_roll_or_a_reason(tmp_path):
    original = scale(tmp_path / "a.mid", 50, 30).read_bytes()
    rng = random.Random(1)
    start = time.perf_counter()
    refused = 0
    for _ in range(2000):
        content = bytearray(original)
        for _ in range(rng.randint(1, 6)):
            content[rng.randrange(rng.choice((24, len(content))))] = rng.randrange(256)
        try:
            roll, _ = parse_midi(bytes(content), 2)
        except ValueError:  # and no other error
            refused += 1
        else:
            assert 1 < len(roll) <= 72_000
    assert 0 < refused < 2000
    assert time.perf_counter() - start < 60


@pytest.fixture
def folder(tmp_path):
    for i in range(20):
        scale(tmp_path / "songs" / f"{i % 3}" / f"{i}.mid", 40 + i, 10 + i)
    return tmp_path / "songs"


def keys(rolls):
    """The lengths of the songs, which differ."""
    return {split: [len(roll) for roll in part] for split, part in rolls.items()}


def test_one_folder_is_split_by_the_seed(folder, tmp_path):
    rolls = load_midi(folder, 2, THIRDS, seed=1)
    assert [len(rolls[s]) for s in ("train", "valid", "test")] == [10, 5, 5]
    assert sorted(n for part in keys(rolls).values() for n in part) == [
        20 + 2 * i for i in range(20)
    ]
    copy = shutil.copytree(folder, tmp_path / "elsewhere")
    assert keys(load_midi(copy, 2, THIRDS, seed=1)) == keys(rolls)
    assert keys(load_midi(folder, 2, THIRDS, seed=2)) != keys(rolls)
    # These are fixed, so that nobody's test set changes.
    assert keys(rolls)["test"] == [48, 40, 28, 58, 32]


def test_folders_of_splits_are_kept(tmp_path):
    for split, count in (("train", 4), ("valid", 2), ("test", 3)):
        for i in range(count):
            scale(tmp_path / split / f"{i}.MIDI", 40, 10 + i)
    rolls = load_midi(tmp_path, 1, THIRDS, seed=1)
    assert keys(rolls) == {"train": [10, 11, 12, 13], "valid": [10, 11], "test": [10, 11, 12]}
    (tmp_path / "valid" / "0.MIDI").write_bytes(b"")
    (tmp_path / "valid" / "1.MIDI").unlink()
    with pytest.raises(ValueError, match=r"valid: none of its 1 MIDI files.*0\.MIDI: .*is empty"):
        load_midi(tmp_path, 1, THIRDS, seed=1)
    (tmp_path / "valid" / "0.MIDI").unlink()
    with pytest.raises(ValueError, match="valid: holds no MIDI files"):
        load_midi(tmp_path, 1, THIRDS, seed=1)
    (tmp_path / "valid").rmdir()
    with pytest.raises(ValueError, match="valid: no such folder; expected train, valid, test"):
        load_midi(tmp_path, 1, THIRDS, seed=1)


def test_rolls_come_from_the_cache_until_something_changes(folder, cache, monkeypatch):
    read = []

    def counted(content, steps_per_beat):
        read.append(1)
        return parse_midi(content, steps_per_beat)

    monkeypatch.setattr(midi_set, "parse_midi", counted)
    first = prepare_midi(folder, 2)
    again = prepare_midi(folder, 2)
    assert len(read) == 20
    assert all(np.array_equal(a, b) for a, b in zip(first.rolls, again.rolls, strict=True))
    prepare_midi(folder, 4)
    assert len(read) == 40
    scale(folder / "0" / "0.mid", 70, 9)
    prepare_midi(folder, 2)
    assert len(read) == 60
    assert not list(cache.glob("*.part"))


def test_a_damaged_cache_is_made_anew(folder, cache, caplog):
    before = prepare_midi(folder, 2)
    (stored,) = cache.glob("*.npz")
    for damaged in (stored.read_bytes()[:-100], b"", b"PK\x03\x04"):
        stored.write_bytes(damaged)
        after = prepare_midi(folder, 2)
        assert [len(r) for r in after.rolls] == [len(r) for r in before.rolls]
        assert "damaged, made anew" in caplog.text


def test_what_was_skipped_is_reported(folder, cache, caplog):
    (folder / "bad\tname.mid").write_bytes(b"")
    (folder / "x.mid").write_bytes(messages(note_on(60), note_off(60, 960), note_on(61)))
    for _ in range(2):  # read, then from the cache
        assert len(prepare_midi(folder, 2).rolls) == 21
    (report,) = cache.glob("*.skipped.tsv")
    assert report.read_text().splitlines() == [
        "file\tremark",
        '"bad\tname.mid"\tskipped: the file is empty',
        "x.mid\tleft out: 1 notes of no length or without an end",
    ]
    skipped = [r for r in caplog.records if "skipped: the file is empty" in r.getMessage()]
    assert [r.levelno for r in skipped] == [logging.WARNING]
    assert caplog.text.count(str(report)) == 2


def test_a_cache_that_cannot_be_written_is_named(folder, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KRON_CACHE_DIR", str(tmp_path / "file"))
    with pytest.raises(ValueError, match=r"file/rolls: cannot keep .* by \$KRON_CACHE_DIR"):
        prepare_midi(folder, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"midi_split": [0.5, 0.5]}, r"--midi-split 0\.5,0\.5: expected the shares"),
        ({"midi_split": [0.5, 0.5, 0.5]}, "which add up to 1"),
        ({"midi_split": [1.2, -0.1, -0.1]}, "expected the shares of train, valid, test"),
        ({"midi_split": [0.98, 0.01, 0.01]}, "leaves 'valid' none of the 20 sequences"),
        ({"steps_per_beat": 0}, "--steps-per-beat=0: must be from 1 to 96"),
        ({"music_set": "JSB"}, r"--music-set 'JSB': .*JSB\.pickle is missing"),
    ],
)
def test_wrong_options_are_named(folder, options, message):
    with pytest.raises(ValueError, match=message):
        MusicTask.setup_task(MusicConfig(data=str(folder), **options))


def test_an_empty_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"holds neither a \.pickle of piano rolls nor MIDI files"):
        MusicTask.setup_task(MusicConfig(data=str(tmp_path)))


def test_a_model_is_trained_and_scored_on_midi(train, kron_eval, folder):
    out = train(
        folder,
        *("--task", "music", "--steps-per-beat", 1, "--midi-split", "0.5,0.25,0.25"),
        *("--arch", "kru", "--hidden-size", 8, "--criterion", "soft_unitary"),
        *("--optimizer", "kron_adam", "--lr", "1e-2", "--batch-size", 4, "--max-epoch", 1),
    )
    result = json.loads(kron_eval(out / "checkpoint_best.pt", "--json").stdout)
    assert result["examples"] == 5
    # The lengths of the five test songs, without the first step of each.
    assert result["predictions"] == (48 + 40 + 28 + 58 + 32) // 2 - 5


@pytest.mark.skipif(not REAL.is_dir(), reason="the music is not in $KRON_DATA")
def test_real_midi_files_all_give_rolls(tmp_path):
    DATASETS["nottingham-midi"].place(REAL / "nottingham_midi.tar.gz", tmp_path)
    prepared = prepare_midi(tmp_path, 2)
    assert len(prepared.rolls) == 1034
    assert prepared.remarks == []


def test_linked_folders_are_read_once(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "tune.mid").write_bytes(b"")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a").symlink_to(elsewhere)
    (folder / "b").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(folder)
    assert midi_files(folder) == [folder / "a" / "tune.mid"]
