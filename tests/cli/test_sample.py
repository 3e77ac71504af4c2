"""A model of music and one of text are trained a moment, scored, and continue a prompt."""

import json

import mido
import pretty_midi
import pytest

TRAIN = (
    *("--criterion", "soft_unitary", "--optimizer", "kron_adam", "--lr", "2e-2"),
    *("--clip-norm", 1, "--batch-size", 8),
)


@pytest.fixture
def music(train, rolls_pickle):
    options = ("--task", "music", "--arch", "kru", "--hidden-size", 32, "--max-epoch", 8)
    return train(rolls_pickle.parent, *options, *TRAIN) / "checkpoint_best.pt"


@pytest.fixture
def text(train, tmp_path):
    for split, count in (("train", 400), ("valid", 20), ("test", 20)):
        (tmp_path / f"{split}.txt").write_text("abc abd abe\n" * count)
    options = ("--task", "char_lm", "--arch", "kru_lm", "--hidden-size", 16, "--max-epoch", 2)
    window = ("--tokens-per-sample", 20)
    return train(tmp_path, *options, *window, *TRAIN) / "checkpoint_best.pt"


def test_music_goes_on_as_midi_and_picture(music, kron_eval, tmp_path):
    def compose(name, *options):
        path = tmp_path / name
        result = kron_eval("sample", music, "--steps", 40, "--output", path, *options)
        assert result.returncode == 0, result.stdout
        assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
        assert f"wrote {path}\nwrote {path.with_suffix('.png')}\n" in result.stdout
        return path

    first = compose("first.mid")
    notes = [m for track in mido.MidiFile(first).tracks for m in track if m.type == "note_on"]
    assert len(notes) > 5
    assert compose("again.mid").read_bytes() == first.read_bytes()
    assert compose("other.mid", "--seed", 2).read_bytes() != first.read_bytes()
    prompted = pretty_midi.PrettyMIDI(str(compose("second.mid", "--prompt", first)))
    assert prompted.get_end_time() > pretty_midi.PrettyMIDI(str(first)).get_end_time()
    first.write_bytes(first.read_bytes() + b"more")
    prompted = kron_eval("sample", music, "--prompt", first, "--output", tmp_path / "x.mid")
    assert f"{first}: left out: 4 bytes behind the ends of tracks" in prompted.stdout
    for options, message in (
        (("--prompt", "absent.mid", "--output", "x.mid"), "absent.mid: no such MIDI file"),
        (("--output", "x.png"), "--output x.png: name the MIDI file to write"),
        (("--output", "absent/x.mid"), "there is no folder absent"),
    ):
        wrong = kron_eval("sample", music, *options)
        assert wrong.returncode == 2
        assert message in wrong.stdout


def test_text_is_scored_and_goes_on(text, kron_eval, tmp_path):
    scored = json.loads(kron_eval(text, "--json").stdout)
    assert scored["metrics"][0]["unit"] == "bits per character"
    assert scored["metrics"][0]["value"] < 0.7 * scored["baseline"]["value"]
    assert scored["predictions"] == 20 * len("abc abd abe\n")

    command = ("sample", text, "--prompt", "abc a", "--steps", 30, "--temperature", 0.5)
    result = kron_eval(*command)
    assert result.returncode == 0, result.stdout
    assert result.stdout.startswith("abc a")
    assert len(result.stdout) == 5 + 30 + 1
    kron_eval(*command, "--output", tmp_path / "sample.txt")  # the same seed, the same text
    assert (tmp_path / "sample.txt").read_text() == result.stdout[:-1]

    coldest = kron_eval(*command[:-1], 1e-40)
    assert coldest.returncode == 0, coldest.stdout

    for options, message in (
        (("--prompt", "ay b☃"), "has characters that the training text has not: 'y', '☃'"),
        (("--steps", 0), "--steps=0: must be at least 1"),
        (("--temperature", 0), "--temperature=0.0: must be above 0"),
    ):
        wrong = kron_eval("sample", text, *options)
        assert wrong.returncode == 2
        assert message in wrong.stdout
