"""Compiling on first use: the cache, several processes at once, and no compiler."""

import logging
import os
import subprocess
import sys

import pytest
import torch

from kron_plugin.ops import backends
from kron_plugin.ops.kron_rnn import dispatch
from kron_plugin.ops.native import compile as compiling
from kron_plugin.ops.native import kernel

SOURCE = 'extern "C" int answer() { return ANSWER; }\n'


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.setenv("KRON_CACHE_DIR", str(tmp_path / "cache"))
    path = tmp_path / "answer.cpp"
    path.write_text(SOURCE)
    return path


def test_cache_hit_and_miss(source, caplog):
    caplog.set_level(logging.INFO)
    for _ in range(2):
        assert compiling.load(source, defines=["ANSWER=42"]).answer() == 42
    assert caplog.text.count("compiling answer.cpp") == 1
    assert compiling.load(source, defines=["ANSWER=43"]).answer() == 43
    source.write_text(SOURCE.replace("ANSWER;", "ANSWER + 1;"))
    assert compiling.load(source, defines=["ANSWER=43"]).answer() == 44
    assert caplog.text.count("compiling answer.cpp") == 3
    assert len(list(compiling.cache_folder().iterdir())) == 3, "nothing unfinished stays behind"


def test_a_header_is_part_of_the_key(source):
    header = source.with_name("answer.h")
    header.write_text("#define OTHER 1\n")
    source.write_text('#include "answer.h"\nextern "C" int answer() { return OTHER; }\n')
    assert compiling.load(source, [header]).answer() == 1
    header.write_text("#define OTHER 2\n")
    assert compiling.load(source, [header]).answer() == 2


def test_several_processes_at_once(source):
    program = (
        "import sys, pathlib; from kron_plugin.ops.native import compile as c;"
        "print(c.load(pathlib.Path(sys.argv[1]), defines=['ANSWER=7']).answer())"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", program, str(source)]
    children = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    assert [child.communicate()[0].strip() for child in children] == ["7"] * 3
    assert len(list(compiling.cache_folder().iterdir())) == 1


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("KRON_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert compiling.cache_folder() == tmp_path / "kron-plugin"


def test_a_relative_cache_folder(source, monkeypatch, tmp_path):
    monkeypatch.setenv("KRON_CACHE_DIR", ".")
    monkeypatch.chdir(tmp_path)
    assert compiling.load(source, defines=["ANSWER=5"]).answer() == 5


def test_a_user_without_a_home(source, monkeypatch):
    def home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("KRON_CACHE_DIR")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(compiling.Path, "home", home)
    with pytest.raises(compiling.CompileError, match=r"home directory.*KRON_CACHE_DIR"):
        compiling.load(source, defines=["ANSWER=6"])
    monkeypatch.setenv("KRON_CACHE_DIR", "~nobody at all/cache")
    with pytest.raises(OSError, match=r"no place for the cache: .*KRON_CACHE_DIR"):
        compiling.cache_folder()


def test_a_damaged_library_is_compiled_again(source):
    compiling.load(source, defines=["ANSWER=8"])
    (library,) = compiling.cache_folder().iterdir()
    library.unlink()  # the loaded one stays as it is
    library.write_bytes(b"no library")
    assert compiling.load(source, defines=["ANSWER=8"]).answer() == 8


def test_a_compiler_that_cannot_be_read(source, monkeypatch):
    monkeypatch.setenv("CXX", "g++ '-O2")
    with pytest.raises(compiling.CompileError, match=r"\$CXX is .*No closing quotation"):
        compiling.load(source)


def test_a_failing_compiler_is_quoted(source):
    source.write_text("this is no program\n")
    with pytest.raises(compiling.CompileError, match=r"failed on answer\.cpp"):
        compiling.load(source)
    assert list(compiling.cache_folder().iterdir()) == []


def test_a_cache_folder_that_cannot_be_made(source, monkeypatch):
    monkeypatch.setenv("KRON_CACHE_DIR", str(source / "below a file"))
    with pytest.raises(compiling.CompileError, match="KRON_CACHE_DIR"):
        compiling.load(source, defines=["ANSWER=1"])


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
        assert dispatch._BACKENDS.choose("auto", problem) == "reference"
    (line,) = [record.getMessage() for record in caplog.records]
    assert "reference" in line
    assert "install g++" in line
    with pytest.raises(RuntimeError, match=r"install g\+\+"):
        dispatch._BACKENDS.choose("cpu", problem)
    assert "cpu" not in dispatch.available_backends()
