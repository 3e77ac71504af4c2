"""kron-data prepare SET --source FOLDER."""

import gzip
import io
import os
import pickle
import sys
import tarfile
from pathlib import Path

import pytest

from kron_plugin.cli.datasets import DATASETS

from ..conftest import ROOT, run
from .conftest import COUNTS, accept, add, archive, left_behind, rolls, song

REAL = Path(os.environ.get("KRON_DATA", ROOT.parent / "shared" / "data"))
IMAGES = "train-images-idx3-ubyte.gz"


@pytest.mark.parametrize("name", COUNTS)
def test_every_set_is_prepared_from_a_folder(source, kron_data, tmp_path, name):
    files, counts = COUNTS[name]
    (tmp_path / "out").mkdir()  # an empty folder is allowed
    code, printed = kron_data("prepare", name, "--source", source, "--dest", tmp_path / "out")
    assert code == 0, printed
    table = [line.split("  ") for line in printed.splitlines()]
    found = {row[0]: next(c.strip() for c in row[1:] if c) for row in table if len(row) > 2}
    assert [found[split] for split in ("train", "valid", "test")] == counts
    assert DATASETS[name].licence in printed
    assert printed.endswith(f"\nwrote {tmp_path / 'out'}\n")
    assert len(list((tmp_path / "out").iterdir())) == files
    assert left_behind(tmp_path) == ["out"]


def test_the_same_content_in_another_wrapping_is_accepted(source, kron_data, tmp_path):
    images = source / IMAGES
    (source / IMAGES.removesuffix(".gz")).write_bytes(gzip.decompress(images.read_bytes()))
    images.unlink()
    (source / "JSB Chorales.pickle").write_bytes(rolls(protocol=0))
    voices = {"all/MIDI/chords/song1.mid": song(3), "all/README.md": b"hello"}
    wrapped = archive("all/MIDI/", members=voices)
    (source / "nottingham_midi.tar.gz").write_bytes(wrapped)
    for name in ("mnist", "jsb", "nottingham-midi"):
        code, printed = kron_data("prepare", name, "--source", source, "--dest", tmp_path / name)
        assert code == 0, printed
    assert len(list((tmp_path / "nottingham-midi").iterdir())) == 10


def test_nothing_in_an_archive_is_written_elsewhere(source, kron_data, tmp_path, monkeypatch):
    path = source / "nottingham_midi.tar.gz"
    path.write_bytes(archive(members={"../../up.mid": song(5), f"{tmp_path}/away.mid": song(6)}))
    with tarfile.open(path) as tar:
        members = [(m, tar.extractfile(m).read()) for m in tar.getmembers()]
    with tarfile.open(path, "w:gz") as tar:
        for member, content in members:
            tar.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("link.mid")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    accept(monkeypatch, source)
    out = tmp_path / "out"
    assert kron_data("prepare", "nottingham-midi", "--source", source, "--dest", out)[0] == 0
    names = [f"song{i}.mid" for i in range(10)]
    assert sorted(p.name for p in out.iterdir()) == sorted(["up.mid", "away.mid", *names])
    assert left_behind(tmp_path) == ["out"]


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("ran",)


def cut(path):
    path.write_bytes(path.read_bytes()[:-30])


def other(path):
    path.write_bytes(path.read_bytes().replace(b"the", b"a"))


def other_rolls(path):
    path.write_bytes(pickle.dumps({s: [[(60,), (61,)]] for s in ("train", "valid", "test")}))


def other_songs(path):
    path.write_bytes(archive(members={"more.mid": song(3)}))


def cut_inside(path):
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-20_000]))


def endless_digits(path):
    """A header extension consists of digits."""
    with tarfile.open(path, "w:gz") as tar:
        member = tarfile.TarInfo("long")
        member.type, member.size = tarfile.XHDTYPE, 200 << 10
        tar.addfile(member, io.BytesIO(b"1" * member.size))
        add(tar, "one.mid", song(4))


def endless_zeros(path):
    path.write_bytes(gzip.compress(bytes(1 << 20)) * 500)


BAD = [
    ("mnist", IMAGES, cut, "not a whole gzip file"),
    ("mnist", IMAGES, lambda p: p.write_bytes(b"\x1f\x8bno"), "not a whole gzip file"),
    ("mnist", IMAGES, lambda p: p.write_bytes(gzip.compress(b"")), "the published file"),
    ("mnist", IMAGES, Path.unlink, "no such file; it is published at https://"),
    ("ptb", "ptb.valid.txt", other, "its content has the checksum"),
    ("jsb", "JSB Chorales.pickle", cut, "not a pickle of plain data"),
    ("jsb", "JSB Chorales.pickle", other_rolls, "its content has the checksum"),
    ("muse", "MuseData.pickle", lambda p: p.write_bytes(pickle.dumps(Bomb())), "could run code"),
    ("nottingham-midi", "nottingham_midi.tar.gz", cut, "not a whole gzip file"),
    ("nottingham-midi", "nottingham_midi.tar.gz", cut_inside, "not a whole archive"),
    ("nottingham-midi", "nottingham_midi.tar.gz", endless_digits, "its content has the checksum"),
    ("mnist", IMAGES, endless_zeros, "unpacks to more than"),
    ("nottingham-midi", "nottingham_midi.tar.gz", other_songs, "its content has the checksum"),
    (
        "nottingham-midi",
        "nottingham_midi.tar.gz",
        lambda p: p.write_bytes(b"x"),
        "not a whole gzip file",
    ),
]


@pytest.mark.parametrize(("name", "file", "damage", "message"), BAD)
def test_a_bad_file_is_named_and_nothing_made(
    source, kron_data, tmp_path, monkeypatch, name, file, damage, message
):
    monkeypatch.chdir(tmp_path)
    damage(source / file)
    code, printed = kron_data("prepare", name, "--source", source, "--dest", tmp_path / "out")
    assert code == 2
    (line,) = printed.strip().splitlines()
    assert line.startswith(f"kron-data: {source / file}: ")
    assert message in line
    assert left_behind(tmp_path) == []


def test_what_was_asked_wrongly_is_named(source, kron_data, tmp_path):
    out = ("--dest", tmp_path / "out")
    code, printed = kron_data("prepare", "minst", "--source", source, *out)
    assert (code, "'minst': no data set; choose one of mnist, ptb" in printed) == (2, True)
    code, printed = kron_data("prepare", "mnist", "--source", tmp_path / "absent", *out)
    assert (code, f"--source {tmp_path / 'absent'}: no such folder" in printed) == (2, True)
    code, printed = kron_data("prepare", "mnist", "--source", source, "--dest", source)
    assert (code, f"--dest {source}: exists already" in printed) == (2, True)
    code, printed = kron_data("prepare", "ptb", "--source", source, *out, "--mirror", "http://x/")
    assert (code, "--mirror http://x/: only together with --download" in printed) == (2, True)
    assert left_behind(tmp_path) == []


def test_the_list_names_all_there_is(kron_data):
    code, printed = kron_data("list")
    assert code == 0
    for name, known in DATASETS.items():
        assert f"{name}: {known.title}\n  licence: {known.licence}" in printed
        for file in known.files:
            assert all(word in printed for word in (file.name, file.checksum, *file.urls))


def test_piano_rolls_share_a_folder_and_others_do_not(source, kron_data, tmp_path):
    def prepare(name, out=tmp_path / "music"):
        return kron_data("prepare", name, "--source", source, "--dest", out)

    assert prepare("jsb")[0] == prepare("muse")[0] == 0
    names = ["JSB Chorales.pickle", "MuseData.pickle"]
    assert sorted(path.name for path in (tmp_path / "music").iterdir()) == names
    code, printed = prepare("jsb")
    assert (code, "has 'JSB Chorales.pickle' already" in printed) == (2, True)
    code, printed = prepare("ptb")
    assert (code, "exists already; choose a new folder" in printed) == (2, True)
    assert left_behind(tmp_path) == ["music"]


def test_as_a_command(tmp_path):
    command = (sys.executable, "-m", "kron_plugin.cli.data")
    result = run(*command, "prepare", "jsb", "--dest", "out", cwd=tmp_path)
    assert result.returncode == 2
    assert "one of the arguments --source --download is required" in result.stdout
    result = run(*command, "prepare", "jsb", "--source", "no", "--dest", "out", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "kron-data: --source no: no such folder\n")


REAL_COUNTS = [
    ("mnist", "mnist", ["55,000 images", "5,000 images", "10,000 images"]),
    ("ptb", "ptb", ["5,017,482 characters", "393,042 characters", "442,423 characters"]),
    ("music", "jsb", ["229 sequences", "76 sequences", "77 sequences"]),
    ("music", "piano-midi", ["87 sequences", "12 sequences", "25 sequences"]),
    ("music", "nottingham", ["694 sequences", "173 sequences", "170 sequences"]),
    ("music", "muse", ["524 sequences", "135 sequences", "124 sequences"]),
    ("music", "nottingham-midi", ["724 sequences", "155 sequences", "155 sequences"]),
]


@pytest.mark.skipif(not REAL.is_dir(), reason="there is no $KRON_DATA")
@pytest.mark.parametrize(("folder", "name", "counts"), REAL_COUNTS)
def test_real_data_have_the_published_counts(
    kron_data, tmp_path, monkeypatch, folder, name, counts
):
    if not (REAL / folder).is_dir():
        pytest.skip(f"{folder} is not in $KRON_DATA")
    monkeypatch.setenv("KRON_CACHE_DIR", str(tmp_path / "cache"))
    out = tmp_path / "out"
    code, printed = kron_data("prepare", name, "--source", REAL / folder, "--dest", out)
    assert code == 0, printed
    for split, count in zip(("train", "valid", "test"), counts, strict=True):
        assert any(
            line.split(maxsplit=1)[0] == split and f" {count} " in line
            for line in printed.splitlines()
            if line
        )
