"""Compiling on first use: the cache, who may put code there, several processes, bad compilers."""

import ctypes
import errno
import fcntl
import logging
import os
import signal
import tempfile
import time
from pathlib import Path

import pytest
import torch

from kron_plugin import cache
from kron_plugin.cache import cache_folder
from kron_plugin.ops import backends
from kron_plugin.ops.cells import rnn
from kron_plugin.ops.native import compile as compiling
from kron_plugin.ops.native import kernel

SOURCE = 'extern "C" int answer() { return ANSWER; }\n'


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.setenv("KRON_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    path = tmp_path / "answer.cpp"
    path.write_text(SOURCE)
    return path


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    """Let a shell script be the compiler."""

    def call(script):
        path = tmp_path / "compiler"
        path.write_text(f"#!/bin/sh\n{script}\n", encoding="latin-1")
        path.chmod(0o755)
        monkeypatch.setenv("CXX", str(path))

    return call


def in_child(function):
    """Let a process of its own call the function; returns its number."""
    child = os.fork()
    if not child:
        try:
            function()
            os._exit(0)
        finally:
            os._exit(1)
    return child


def answer(source):
    return compiling.load(source, defines=["ANSWER=42"]).answer()


def test_cache_hit_and_miss(source, caplog):
    caplog.set_level(logging.INFO)
    for _ in range(2):
        assert compiling.load(source, defines=["ANSWER=42"]).answer() == 42
    assert caplog.text.count("compiling answer.cpp") == 1
    assert compiling.load(source, defines=["ANSWER=43"]).answer() == 43
    source.write_text(SOURCE.replace("ANSWER;", "ANSWER + 1;"))
    assert compiling.load(source, defines=["ANSWER=43"]).answer() == 44
    assert caplog.text.count("compiling answer.cpp") == 3
    assert len(list(cache_folder().iterdir())) == 3, "nothing unfinished stays behind"


def test_a_header_is_part_of_the_key(source):
    header = source.with_name("answer.h")
    header.write_text("#define OTHER 1\n")
    source.write_text('#include "answer.h"\nextern "C" int answer() { return OTHER; }\n')
    assert compiling.load(source, [header]).answer() == 1
    header.write_text("#define OTHER 2\n")
    assert compiling.load(source, [header]).answer() == 2


def test_of_several_processes_at_once_one_compiles(source, compiler):
    calls = source.with_name("calls")
    compiler(
        f"""echo "$1" >> {calls}
        until [ $(grep -c version {calls}) = 3 ]; do sleep 0.1; done
        exec c++ "$@" """
    )
    children = [in_child(lambda: answer(source)) for _ in range(3)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 3
    assert sorted(calls.read_text().split()) == ["--version"] * 3 + ["-O3"]
    assert len(list(cache_folder().iterdir())) == 1


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("KRON_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "kron-plugin"


def test_a_relative_cache_folder(source, monkeypatch, tmp_path):
    monkeypatch.setenv("KRON_CACHE_DIR", ".")
    monkeypatch.chdir(tmp_path)
    assert compiling.load(source, defines=["ANSWER=5"]).answer() == 5


def test_a_user_without_a_home(source, monkeypatch, tmp_path, caplog):
    def home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("KRON_CACHE_DIR")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(compiling.Path, "home", home)
    monkeypatch.setattr(compiling.tempfile, "tempdir", str(tmp_path))
    assert compiling.load(source, defines=["ANSWER=6"]).answer() == 6
    assert "home directory" in caplog.text
    monkeypatch.setenv("KRON_CACHE_DIR", "~nobody at all/cache")
    with pytest.raises(OSError, match=r"no place for the cache: .*KRON_CACHE_DIR"):
        cache_folder()


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"no library",
        lambda content: b"",
        lambda content: content[: len(content) // 2],
        lambda content: content[:4096] + bytes(len(content) - 4096),
        lambda content: content + b"\0",
    ],
)
def test_a_damaged_library_is_compiled_again(source, damage, monkeypatch, caplog):
    answer(source)
    (library,) = cache_folder().iterdir()
    elsewhere = source.with_name("copied")  # a path that is not loaded already
    elsewhere.mkdir()
    (elsewhere / library.name).write_bytes(damage(library.read_bytes()))
    monkeypatch.setenv("KRON_CACHE_DIR", str(elsewhere))
    assert answer(source) == 42
    assert f"{elsewhere / library.name} is damaged" in caplog.text
    caplog.clear()
    assert answer(source) == 42
    assert not caplog.text


def test_a_compiler_that_cannot_be_read(source, monkeypatch):
    monkeypatch.setenv("CXX", "g++ '-O2")
    with pytest.raises(compiling.CompileError, match=r"\$CXX is .*No closing quotation"):
        compiling.load(source)


def test_a_failing_compiler_is_quoted(source):
    source.write_text("this is no program\n")
    with pytest.raises(compiling.CompileError, match=r"failed on answer\.cpp"):
        compiling.load(source)
    assert list(cache_folder().iterdir()) == []


def no_libraries(folder, monkeypatch):
    """Let libraries load from any folder but this one."""

    def load(path):
        if Path(path).parent == folder:
            raise OSError(f"{path}: failed to map segment from shared object")
        return plain(path)

    plain = ctypes.CDLL
    monkeypatch.setattr(ctypes, "CDLL", load)


def noexec(folder, monkeypatch):
    class Mount:
        f_flag = os.ST_NOEXEC

    plain = os.statvfs
    monkeypatch.setattr(os, "statvfs", lambda path: Mount if path == folder else plain(path))


@pytest.mark.parametrize(
    "spoil",
    [
        no_libraries,
        noexec,
        lambda folder, monkeypatch: folder.write_text("a file"),
        lambda folder, monkeypatch: folder.mkdir() or folder.chmod(0o777),
    ],
)
def test_a_folder_that_cannot_be_used_is_passed_over(source, spoil, monkeypatch, caplog):
    spoil(cache_folder(), monkeypatch)
    caplog.set_level(logging.INFO)
    assert answer(source) == 42
    compiled = caplog.text.count("compiling answer.cpp")
    assert answer(source) == 42
    assert caplog.text.count("compiling answer.cpp") == compiled
    (warning,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert str(cache_folder()) in warning
    assert f"{tempfile.gettempdir()}/kron-plugin-{os.geteuid()}" in warning


def test_no_folder_can_be_used(source, monkeypatch):
    monkeypatch.setenv("KRON_CACHE_DIR", str(source / "below a file"))
    monkeypatch.setattr(tempfile, "tempdir", str(source / "below a file"))
    with pytest.raises(compiling.CompileError, match="KRON_CACHE_DIR"):
        answer(source)


@pytest.mark.parametrize(
    ("writable", "expected"), [(None, 666), ("cache", 42), ("", 42), ("cache/{}", 42)]
)
def test_a_planted_library_is_not_run(source, writable, expected, monkeypatch, caplog):
    """Others might have written to the folder, to one above it, or to the file."""
    answer(source)
    (library,) = cache_folder().iterdir()
    other = compiling.load(source, defines=["ANSWER=666"])._name
    parent = source.with_name("parent")
    (parent / "cache").mkdir(parents=True)
    (parent / "cache" / library.name).write_bytes(Path(other).read_bytes())
    monkeypatch.setenv("KRON_CACHE_DIR", str(parent / "cache"))
    if writable is not None:
        (parent / writable.format(library.name)).chmod(0o777)
    assert answer(source) == expected
    assert (str(parent) in caplog.text) == (writable is not None)


USER, OTHER, ROOT = 12345, 12346, 0
PRIVATE, STAFF, TEAM = 12345, 50, 60  # groups: the user's own, others', one with another member


@pytest.mark.parametrize(
    ("uid", "gid", "mode", "reason"),
    [
        (USER, STAFF, 0o755, None),
        (ROOT, STAFF, 0o755, None),
        (OTHER, PRIVATE, 0o755, "belongs to the user number 12346"),
        (USER, PRIVATE, 0o775, None),
        (USER, STAFF, 0o775, "can be written by others (mode 775)"),
        (USER, TEAM, 0o775, "can be written by others (mode 775)"),
        (ROOT, PRIVATE, 0o775, "can be written by others (mode 775)"),
        (USER, PRIVATE, 0o757, "can be written by others (mode 757)"),
        (ROOT, ROOT, 0o1777, "can be written by others (mode 1777)"),
    ],
)
def test_who_is_trusted(uid, gid, mode, reason, monkeypatch):
    users = {USER: ("ann", PRIVATE), ROOT: ("root", ROOT)}
    groups = {PRIVATE: ("ann", []), STAFF: ("staff", []), TEAM: ("ann", ["bob"])}

    def getpwuid(number):
        return cache.pwd.struct_passwd((users[number][0], "", number, users[number][1], *"   "))

    def getgrgid(number):
        return cache.grp.struct_group((groups[number][0], "", number, groups[number][1]))

    monkeypatch.setattr(os, "geteuid", lambda: USER)
    monkeypatch.setattr(cache.pwd, "getpwuid", getpwuid)
    monkeypatch.setattr(cache.grp, "getgrgid", getgrgid)
    status = os.stat_result((mode, 0, 0, 1, uid, gid, 0, 0, 0, 0))
    assert cache.why_not_trusted(status) == reason


def test_a_shared_cache_need_not_be_writable(source, monkeypatch):
    answer(source)
    cache_folder().chmod(0o555)
    monkeypatch.setattr(os, "geteuid", lambda: USER if os.getuid() == ROOT else os.getuid())
    monkeypatch.setattr(compiling, "one_process", None)
    assert answer(source) == 42


def test_a_killed_process_does_not_keep_the_others_waiting(source):
    def begin():
        with cache.one_process(source, 60):
            source.with_name("begun").touch()
            time.sleep(60)

    child = in_child(begin)
    while not source.with_name("begun").exists():
        time.sleep(0.01)
    begun = time.monotonic()
    with cache.one_process(source, 0.2):
        assert time.monotonic() - begun >= 0.2, "it waits, but not for ever"
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with cache.one_process(source, 60):
        assert time.monotonic() - begun < 30
    assert not list(source.parent.glob(".*.lock"))


def test_a_file_system_without_locks(source, monkeypatch):
    def flock(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    assert answer(source) == 42
    assert len(list(cache_folder().iterdir())) == 1


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo 'f\xfcr f\xe4lle' >&2; exit 1", r"failed on answer\.cpp: f\ufffdr f\ufffdlle"),
        ("test $1 = --version && exit; sleep 60 & sleep 60", "did not end within 0.3 seconds"),
        ("sleep 60 & sleep 60", "did not end within 0.3 seconds"),
        ("exit 0", r"made no library of answer\.cpp"),
        (
            'test $1 != --version && shift $(($# - 1)) && echo text > "$1"; exit 0',
            "made no library",
        ),
    ],
)
def test_a_compiler_that_misbehaves(source, compiler, script, message, monkeypatch):
    compiler(script)
    monkeypatch.setattr(compiling, "PATIENCE", 0.3)
    begun = time.monotonic()
    with pytest.raises(compiling.CompileError, match=message):
        answer(source)
    assert time.monotonic() - begun < 30
    assert not cache_folder().exists() or not list(cache_folder().iterdir())


def test_a_compiler_that_is_no_program(source, compiler):
    compiler("")
    source.with_name("compiler").write_bytes(b"\0")
    with pytest.raises(compiling.CompileError, match=r"compiler cannot be run: .*Exec format"):
        answer(source)


@pytest.fixture
def no_compiler(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    kernel.library.cache_clear()
    backends.log_once.cache_clear()
    yield
    kernel.library.cache_clear()


def test_no_compiler(no_compiler, caplog):
    caplog.set_level(logging.INFO)
    problem = backends.Problem(torch.device("cpu"), torch.float32, True)
    for _ in range(2):
        assert rnn.recurrence.backends.choose("auto", problem) == "reference"
    (line,) = [record.getMessage() for record in caplog.records]
    assert "reference" in line
    assert "install g++" in line
    with pytest.raises(RuntimeError, match=r"install g\+\+"):
        rnn.recurrence.backends.choose("cpu", problem)
    assert "cpu" not in rnn.available_backends()
