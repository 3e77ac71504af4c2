import gzip
import io
import os
import pickle
import signal
import socket
import subprocess
import sys
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from pretty_midi import Instrument, Note, PrettyMIDI

from kron_plugin.cli.data import main
from kron_plugin.cli.datasets import DATASETS, File

from ..conftest import ROOT, run

REAL = Path(os.environ.get("KRON_DATA", ROOT.parent / "shared" / "data"))
IMAGES = "train-images-idx3-ubyte.gz"


def idx(array):
    sizes = b"".join(int(n).to_bytes(4, "big") for n in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes()


def rolls(protocol=2):
    data = {
        split: [[(60, 64), (62,)]] * n for split, n in (("train", 3), ("valid", 1), ("test", 2))
    }
    return pickle.dumps(data, protocol)


def song(steps):
    midi, instrument = PrettyMIDI(), Instrument(0)
    instrument.notes = [Note(90, 60 + t, t / 4, (t + 1) / 4) for t in range(steps)]
    midi.instruments.append(instrument)
    file = io.BytesIO()
    midi.write(file)
    return file.getvalue()


def archive(prefix="", **more):
    """A .tar.gz of ten songs, and of members under other names."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        for i in range(10):
            add(tar, f"{prefix}song{i}.mid", song(4 + i))
        for name, content in more.get("members", {}).items():
            add(tar, name, content)
    return file.getvalue()


def add(tar, name, content):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A folder with small files of every set, which pass for the published ones."""
    monkeypatch.setenv("KRON_CACHE_DIR", str(tmp_path / "cache"))
    folder = tmp_path / "source"
    folder.mkdir()
    for part, count in (("train", 5012), ("t10k", 7)):
        images = np.arange(count).reshape(count, 1, 1)
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
        labels = idx(np.arange(count) % 10)
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))
    for split in ("train", "valid", "test"):
        (folder / f"ptb.{split}.txt").write_text(f" the {split} set \n of <unk> \n")
    for name in ("JSB Chorales", "Piano-midi.de", "Nottingham", "MuseData"):
        (folder / f"{name}.pickle").write_bytes(rolls())
    (folder / "nottingham_midi.tar.gz").write_bytes(archive())
    accept(monkeypatch, folder)
    return folder


def accept(monkeypatch, folder):
    for name, known in DATASETS.items():
        files = (File(f.name, known.checksum(folder / f.name), f.urls) for f in known.files)
        monkeypatch.setitem(DATASETS, name, known._replace(files=tuple(files)))


@pytest.fixture
def kron_data(capsys, tmp_path):
    """Run kron-data; its exit code, and what it printed."""

    def call(*args):
        code = main([str(a) for a in args])
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return call


def left_behind(tmp_path):
    return sorted(p.name for p in tmp_path.iterdir() if p.name not in ("source", "cache", "site"))


COUNTS = {
    "mnist": (4, ["12 images", "5,000 images", "7 images"]),
    "ptb": (4, ["23 characters", "23 characters", "22 characters"]),
    "jsb": (1, ["3 sequences", "1 sequences", "2 sequences"]),
    "piano-midi": (1, ["3 sequences", "1 sequences", "2 sequences"]),
    "nottingham": (1, ["3 sequences", "1 sequences", "2 sequences"]),
    "muse": (1, ["3 sequences", "1 sequences", "2 sequences"]),
    "nottingham-midi": (10, ["7 sequences", "1 sequences", "2 sequences"]),
}


@pytest.mark.parametrize("name", COUNTS)
def test_every_set_is_prepared_from_a_folder(source, kron_data, tmp_path, name):
    files, counts = COUNTS[name]
    (tmp_path / "out").mkdir()  # an empty folder will do
    code, printed = kron_data("prepare", name, "--source", source, "--dest", tmp_path / "out")
    assert code == 0, printed
    table = [line.split("  ") for line in printed.splitlines()]
    found = {row[0]: next(c.strip() for c in row[1:] if c) for row in table if len(row) > 2}
    assert [found[split] for split in ("train", "valid", "test")] == counts
    assert DATASETS[name].licence in printed
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


BAD = [
    ("mnist", IMAGES, cut, "not a whole gzip file"),
    ("mnist", IMAGES, lambda p: p.write_bytes(b"\x1f\x8bno"), "not a whole gzip file"),
    ("mnist", IMAGES, lambda p: p.write_bytes(gzip.compress(b"")), "the published file"),
    ("mnist", IMAGES, Path.unlink, "no such file; it is published at https://"),
    ("ptb", "ptb.valid.txt", other, "its content has the checksum"),
    ("jsb", "JSB Chorales.pickle", cut, "not a pickle of plain data"),
    ("jsb", "JSB Chorales.pickle", other_rolls, "its content has the checksum"),
    ("muse", "MuseData.pickle", lambda p: p.write_bytes(pickle.dumps(Bomb())), "could run code"),
    ("nottingham-midi", "nottingham_midi.tar.gz", cut, "not a whole archive"),
    ("nottingham-midi", "nottingham_midi.tar.gz", other_songs, "its content has the checksum"),
    (
        "nottingham-midi",
        "nottingham_midi.tar.gz",
        lambda p: p.write_bytes(b"x"),
        "not a whole arch",
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


class Site(ThreadingHTTPServer):
    """Serves a folder; breaks off `breaks` transfers half-way, knows ranges if `ranges`, and waits
    for `stall` before it sends anything."""

    def __init__(self, folder):
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.breaks, self.ranges, self.stall = folder, 0, True, None
        self.asked = []  # (path, range)
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        site, wanted = self.server, self.headers.get("Range")
        site.asked.append((self.path, wanted))
        path = site.folder / unquote(self.path).lstrip("/")
        if not path.is_file():
            return self.send_error(404)
        content, start = path.read_bytes(), 0
        if wanted and site.ranges:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                return self.send_error(416)
        self.send_response(206 if start else 200)
        content = content[start:]
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if site.breaks:
            site.breaks -= 1
            content = content[: len(content) // 2]
        if site.stall:
            site.stall.wait(30)
        self.wfile.write(content)

    def log_message(self, *args):
        pass


@pytest.fixture
def site(source, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Site(source)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server
    if server.stall:
        server.stall.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def fetch(kron_data, site, tmp_path):
    """Run `kron-data prepare NAME --download` against the site."""

    def call(name, mirror=None):
        mirror = mirror or site.url
        out = tmp_path / "out"
        return kron_data("prepare", name, "--download", "--mirror", mirror, "--dest", out)

    return call


@pytest.mark.parametrize("name", ["mnist", "jsb", "nottingham-midi"])
def test_a_set_is_downloaded(fetch, tmp_path, name):
    code, printed = fetch(name)
    assert code == 0, printed
    assert len(list((tmp_path / "out").iterdir())) == COUNTS[name][0]
    assert left_behind(tmp_path) == ["out"]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_transfer_is_resumed_or_begun_again(fetch, site, source, tmp_path, ranges):
    site.breaks, site.ranges = (1 if not ranges else 2), ranges
    code, printed = fetch("jsb")
    assert code == 0, printed
    content = (source / "JSB Chorales.pickle").read_bytes()
    assert (tmp_path / "out" / "JSB Chorales.pickle").read_bytes() == content
    half = len(content) // 2
    more = half + (len(content) - half) // 2
    expected = [None, f"bytes={half}-", f"bytes={more}-"]
    assert [r for _, r in site.asked] == expected[: 3 if ranges else 2]


def test_a_later_call_goes_on_where_the_last_broke_off(fetch, site, source, tmp_path):
    content = (source / "ptb.valid.txt").read_bytes()
    part = tmp_path / ".out.download" / "ptb.valid.txt.part"
    part.parent.mkdir()
    part.write_bytes(content[:9])
    assert fetch("ptb")[0] == 0
    assert ("/ptb.valid.txt", "bytes=9-") in site.asked
    assert (tmp_path / "out" / "valid.txt").read_text() == "the valid set\nof <unk>\n"
    assert left_behind(tmp_path) == ["out"]


@pytest.mark.parametrize("stale", [b"something else", b"something longer " * 99])
def test_a_part_of_something_else_is_begun_again(fetch, tmp_path, stale):
    part = tmp_path / ".out.download" / "ptb.train.txt.part"
    part.parent.mkdir()
    part.write_bytes(stale)
    code, printed = fetch("ptb")
    assert code == 0, printed


def test_another_file_than_the_published_is_refused(fetch, source, tmp_path):
    other(source / "ptb.valid.txt")
    code, printed = fetch("ptb")
    assert code == 2
    assert "cannot download ptb.valid.txt" in printed
    assert "its content has the checksum" in printed
    assert left_behind(tmp_path) == [".out.download"]
    assert sorted(p.name for p in (tmp_path / ".out.download").iterdir()) == ["ptb.train.txt"]


def test_the_next_address_is_tried(kron_data, site, source, tmp_path, monkeypatch):
    (file,) = DATASETS["jsb"].files
    (source / "page.html").write_text("please log in")
    urls = tuple(f"{site.url}/{page}" for page in ("absent", "page.html", "JSB%20Chorales.pickle"))
    known = DATASETS["jsb"]._replace(files=(file._replace(urls=urls),))
    monkeypatch.setitem(DATASETS, "jsb", known)
    code, printed = kron_data("prepare", "jsb", "--download", "--dest", tmp_path / "out")
    assert code == 0, printed
    assert [path for path, _ in site.asked] == [f"/{url.split('/')[-1]}" for url in urls]


def test_a_dead_host_is_said_plainly_with_what_to_fetch_by_hand(fetch, tmp_path):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound, but nobody listens
        code, printed = fetch("mnist", f"http://127.0.0.1:{closed.getsockname()[1]}")
    assert code == 2
    assert printed.startswith("kron-data: cannot download train-images-idx3-ubyte.gz: http://127.0")
    assert "Connection refused\n" in printed
    assert "Traceback" not in printed
    for file in DATASETS["mnist"].files:
        assert f"{file.name} " in printed
        assert file.urls[0] in printed
    assert f"into {tmp_path / '.out.download'}, and run this again" in printed
    assert not (tmp_path / "out").exists()


def test_what_is_no_address_is_named(fetch, tmp_path):
    part = tmp_path / ".out.download" / "JSB Chorales.pickle.part"
    part.parent.mkdir()
    part.write_bytes(b"begun")
    code, printed = fetch("jsb", "mirror")
    assert code == 2
    assert "unknown url type: 'mirror/JSB%20Chorales.pickle'" in printed


def test_what_was_fetched_by_hand_is_used(fetch, site, source, tmp_path):
    (tmp_path / ".out.download").mkdir()
    for split in ("train", "valid", "test"):
        (source / f"ptb.{split}.txt").rename(tmp_path / ".out.download" / f"ptb.{split}.txt")
    assert fetch("ptb")[0] == 0
    assert site.asked == []


def test_an_interrupt_leaves_nothing_under_the_final_name(site, tmp_path):
    site.stall = threading.Event()
    out = tmp_path / "out"
    command = ("-m", "kron_plugin.cli.data", "prepare", "ptb", "--download")
    process = subprocess.Popen(
        [sys.executable, *command, "--mirror", site.url, "--dest", out],
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )
    while not site.asked and process.poll() is None:
        threading.Event().wait(0.05)
    process.send_signal(signal.SIGINT)
    _, printed = process.communicate(timeout=30)
    assert process.returncode == 130, printed
    assert printed.splitlines()[-1] == "kron-data: interrupted"
    assert "Traceback" not in printed
    assert not out.exists()


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
