"""Damaged data files give what they hold, or an error that names them."""

import gzip
import io
import pickle

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pretty_midi import Instrument, Note, PrettyMIDI

import kron_plugin

kron_plugin.register()

from kron_plugin.tasks import midi_set  # noqa: E402
from kron_plugin.tasks.idx import load_images  # noqa: E402
from kron_plugin.tasks.midi import parse_midi  # noqa: E402
from kron_plugin.tasks.rolls import load_rolls  # noqa: E402
from kron_plugin.tasks.text import load_text, load_tokenizer  # noqa: E402

from ..fuzz import damaged, ends_well, fuzzed, swollen  # noqa: E402

IMAGES = bytes([0, 0, 8, 3, 0, 0, 0, 3, 0, 0, 0, 2, 0, 0, 0, 2]) + bytes(range(12))
LABELS = bytes([0, 0, 8, 1, 0, 0, 0, 3, 0, 5, 9])
ROLLS = {split: [[(60, 64), (62,)], [(21,), ()]] for split in ("train", "valid", "test")}
TEXT = "a line, or two\nof ünïcode text\n"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KRON_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def song():
    midi, piano = PrettyMIDI(), Instrument(0)
    piano.notes = [Note(90, 60 + t, t / 4, (t + 1) / 4) for t in range(5)]
    midi.instruments.append(piano)
    file = io.BytesIO()
    midi.write(file)
    return file.getvalue()


def shared(sequence, times):
    """A pickle that holds a sequence once and refers to it."""
    return pickle.dumps({split: [sequence] * times for split in ROLLS})


def nested(depth):
    """A tuple whose every level has the level below twice: small, but endless to traverse."""
    return (nested(depth - 1),) * 2 if depth else ()


def is_roll(roll):
    return roll.dtype == np.uint8 and roll.ndim == 2 and roll.shape[1] == 88 and roll.max() <= 1


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_idx(tmp_path, ending):
    @fuzzed
    @given(images=damaged(IMAGES), labels=damaged(LABELS))
    @example(images=IMAGES, labels=LABELS[:7] + b"\2\0\1")
    @example(images=b"\0\0\x08\x03" + b"\xff" * 12, labels=LABELS)
    @example(images=b"\0\0\x08\x03\0\0\0\3\0\0\0\0\0\0\0\1", labels=LABELS)
    def check(images, labels):
        (tmp_path / "train-images-idx3-ubyte").write_bytes(images)
        wrapped = gzip.compress(labels, mtime=0) if ending else labels
        (tmp_path / f"train-labels-idx1-ubyte{ending}").write_bytes(wrapped)
        found = ends_well(load_images, tmp_path, "train", False, says=tmp_path)
        if found is not None:
            pixels, digits = found
            assert len(pixels) == len(digits) > 0
            assert pixels.shape[1] > 0
            assert pixels.tobytes() == images[16:]
            assert digits.tobytes() == labels[8:]

    check()


@fuzzed
@given(damaged(gzip.compress(LABELS, mtime=0)))
def test_gzip(tmp_path, content):
    (tmp_path / "train-images-idx3-ubyte").write_bytes(IMAGES)
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(content)
    ends_well(load_images, tmp_path, "train", False, says=tmp_path)


def test_a_small_file_that_unpacks_to_gigabytes(tmp_path):
    header = IMAGES[:4] + b"".join(n.to_bytes(4, "big") for n in (3 << 19, 32, 32))
    bomb = gzip.compress(header) + gzip.compress(bytes(1 << 20)) * 1536
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(bomb)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(LABELS)
    assert ends_well(load_images, tmp_path, "train", False, says="unpacks to more") is None


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_pickles(tmp_path, protocol):
    @fuzzed
    @given(damaged(pickle.dumps(ROLLS, protocol)) | swollen(pickle.dumps(ROLLS, protocol)))
    @example(shared([(60,)] * 20_000, 20_000))
    @example(shared([(60,) * 20_000] * 20_000, 1))
    @example(shared([nested(40)], 1))
    @example(b"\x80\2})" + b"2\x86" * 40 + b"K\1s.")  # as a key, and in sets
    @example(b"\x80\4\x8f()" + b"2\x86" * 40 + b"\x90.")
    @example(b"\x80\4()" + b"2\x86" * 40 + b"\x91.")
    @example(pickle.dumps({s: [[(10**5000,)]] for s in ROLLS}))
    @example(b"\x80\x02]r\xff\xff\xff\x0f.")  # a memo index that takes 4 GiB
    @example(b"\x80\x04\x8e" + b"\xff" * 7 + b"\x0f")  # a string of an exabyte
    @example(b"(" * 5000)
    def check(content):
        (tmp_path / "x.pickle").write_bytes(content)
        rolls = ends_well(load_rolls, tmp_path, says="x.pickle")
        if rolls is not None:
            assert all(is_roll(roll) for split in rolls.values() for roll in split if len(roll))

    check()


@fuzzed
@given(damaged(song()) | swollen(song()), st.sampled_from([1, 2, 24]))
@example(song()[:-4] + b"\0\xc0\5" + b"\0\5" * (1 << 18), 2)
@example(
    song()[:-4] + b"\0\x90\x3c\5" + b"\0\x3c\5" * 50_000 + b"\x84\x80\x80\0\x3c\0" * 50_000, 24
)
def test_midi(content, steps_per_beat):
    reading = ends_well(parse_midi, content, steps_per_beat)
    assert reading is None or is_roll(reading.roll)


def test_a_damaged_cache_of_rolls_is_made_anew(tmp_path, cache):
    (tmp_path / "songs").mkdir()
    (tmp_path / "songs" / "one.mid").write_bytes(song())
    expected = midi_set.prepare_midi(tmp_path / "songs", 2)
    (cached,) = cache.rglob("*.npz")

    @fuzzed
    @given(damaged(cached.read_bytes()))
    def check(content):
        cached.write_bytes(content)
        prepared = ends_well(midi_set.prepare_midi, tmp_path / "songs", 2)
        assert np.array_equal(prepared.rolls, expected.rolls)

    check()


@fuzzed
@given(damaged(TEXT.encode()) | st.text(max_size=60).map(lambda t: t.encode("utf-8", "replace")))
@example(b"\xef\xbb\xbfa\n")
@example("a\r\nb\u2028\x85\u00a0\u3000 c\n".encode())
def test_text(tmp_path, cache, content):
    """Decoding its symbols restores the text."""
    for split in ("train", "valid", "test"):
        (tmp_path / f"{split}.txt").write_bytes(content)
    texts = ends_well(load_text, tmp_path, says="train.txt")
    if texts is not None:
        tokenizer = ends_well(load_tokenizer, tmp_path, texts)
        assert tokenizer.decode(tokenizer.encode(texts["train"])).encode() == content


@pytest.mark.parametrize("kept", ["beside the data", "in the cache"])
def test_a_damaged_tokenizer(tmp_path, cache, kept):
    texts = dict.fromkeys(("train", "valid", "test"), TEXT)
    load_tokenizer(tmp_path, texts)
    (path,) = cache.rglob("*.model")
    content = path.read_bytes()
    if kept == "beside the data":
        path = tmp_path / "char.model"

    @fuzzed
    @given(damaged(content))
    def check(content):
        path.write_bytes(content)
        tokenizer = ends_well(load_tokenizer, tmp_path, texts, says=path)
        assert tokenizer is not None or kept == "beside the data"
        if tokenizer is not None:
            assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT

    check()
