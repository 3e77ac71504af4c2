"""kron-data prepare SET --download, from a local site."""

import signal
import socket
import subprocess
import sys
import threading

import pytest

from kron_plugin.cli.datasets import DATASETS

from .conftest import COUNTS, left_behind


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
    part = tmp_path / ".out.ptb.download" / "ptb.valid.txt.part"
    part.parent.mkdir()
    part.write_bytes(content[:9])
    other = tmp_path / ".out.jsb.download" / "by hand"
    other.mkdir(parents=True)
    assert fetch("ptb")[0] == 0
    other.rmdir()
    other.parent.rmdir()
    assert ("/ptb.valid.txt", "bytes=9-") in site.asked
    assert (tmp_path / "out" / "valid.txt").read_text() == "the valid set\nof <unk>\n"
    assert left_behind(tmp_path) == ["out"]


@pytest.mark.parametrize("stale", [b"something else", b"something longer " * 99])
def test_a_part_of_something_else_is_begun_again(fetch, tmp_path, stale):
    part = tmp_path / ".out.ptb.download" / "ptb.train.txt.part"
    part.parent.mkdir()
    part.write_bytes(stale)
    code, printed = fetch("ptb")
    assert code == 0, printed


def test_another_file_than_the_published_is_refused(fetch, source, tmp_path):
    (source / "ptb.valid.txt").write_bytes(b"something else")
    code, printed = fetch("ptb")
    assert code == 2
    assert "cannot download ptb.valid.txt" in printed
    assert "its content has the checksum" in printed
    assert left_behind(tmp_path) == [".out.ptb.download"]
    assert sorted(p.name for p in (tmp_path / ".out.ptb.download").iterdir()) == ["ptb.train.txt"]


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
        closed.bind(("127.0.0.1", 0))  # bound, but not listening
        code, printed = fetch("mnist", f"http://127.0.0.1:{closed.getsockname()[1]}")
    assert code == 2
    assert printed.startswith("kron-data: cannot download train-images-idx3-ubyte.gz: http://127.0")
    assert "Connection refused\n" in printed
    assert "Traceback" not in printed
    for file in DATASETS["mnist"].files:
        assert f"{file.name} " in printed
        assert file.urls[0] in printed
    assert f"into {tmp_path / '.out.mnist.download'}, and run this again" in printed
    assert not (tmp_path / "out").exists()


def test_what_is_no_address_is_named(fetch, tmp_path):
    part = tmp_path / ".out.jsb.download" / "JSB Chorales.pickle.part"
    part.parent.mkdir()
    part.write_bytes(b"begun")
    code, printed = fetch("jsb", "mirror")
    assert code == 2
    assert "unknown url type: 'mirror/JSB%20Chorales.pickle'" in printed


def test_what_was_fetched_by_hand_is_used(fetch, site, source, tmp_path):
    (tmp_path / ".out.ptb.download").mkdir()
    for split in ("train", "valid", "test"):
        (source / f"ptb.{split}.txt").rename(tmp_path / ".out.ptb.download" / f"ptb.{split}.txt")
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
