"""Small files of every data set that kron-data knows, a site that publishes them, and kron-data."""

import gzip
import io
import pickle
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import numpy as np
import pytest
from pretty_midi import Instrument, Note, PrettyMIDI

from kron_plugin.cli.data import main
from kron_plugin.cli.datasets import DATASETS, File

# The files of a prepared set, and the counts of kron-data in each split.
COUNTS = {
    "mnist": (4, ["12 images", "5,000 images", "7 images"]),
    "ptb": (3, ["23 characters", "23 characters", "22 characters"]),
    "jsb": (1, ["3 sequences", "1 sequences", "2 sequences"]),
    "piano-midi": (1, ["3 sequences", "1 sequences", "2 sequences"]),
    "nottingham": (1, ["3 sequences", "1 sequences", "2 sequences"]),
    "muse": (1, ["3 sequences", "1 sequences", "2 sequences"]),
    "nottingham-midi": (10, ["7 sequences", "1 sequences", "2 sequences"]),
}


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
    """A folder with small files of every set; their checksums count as the published ones."""
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
    """Run kron-data; return its exit code and its output."""

    def call(*args):
        code = main([str(a) for a in args])
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return call


def left_behind(tmp_path):
    return sorted(p.name for p in tmp_path.iterdir() if p.name not in ("source", "cache", "site"))


class Site(ThreadingHTTPServer):
    """Serves a folder. It breaks off `breaks` transfers half-way, supports ranges if `ranges`, and
    waits for `stall` before it sends anything."""

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
