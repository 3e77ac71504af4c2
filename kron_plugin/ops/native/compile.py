"""C++ sources to loaded libraries: compiled once with the system compiler, then found in a cache.

They are kept in `kron_plugin.cache.cache_folder()`. The name of a library holds a hash of sources,
flags, compiler and processor. A checksum of the library follows its end.
"""

import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from subprocess import DEVNULL, STDOUT
from typing import List, Optional, Sequence, Set, Tuple

from ...cache import (
    cache_folder,
    made_for_code,
    one_process,
    temporary_folder,
    why_not_trusted,
)
from ...files import atomic_write

logger = logging.getLogger(__name__)

# Results may differ from strict floating point only in fused multiply-adds: NaN and inf survive.
FLAGS = (
    *("-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", "-pthread"),
    *("-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"),
)
PATIENCE = 600.0  # seconds, for a compiler and for another process that compiles the same
DIGEST_BYTES = 32  # of a checksum


class CompileError(RuntimeError):
    """The library is not available; the message says why, and what to do."""


HEADERS = sorted(Path(__file__).parent.glob("*.h"))  # what all our kernels may include


def find_compiler() -> List[str]:
    """The command of the C++ compiler: $CXX, else the first of c++, g++ and clang++ on the path.

    Raises:
        CompileError: there is none.
    """
    try:
        named = shlex.split(os.environ.get("CXX", ""))
    except ValueError as error:
        raise CompileError(f"$CXX is {os.environ['CXX']!r}: {error}") from error
    for command in [named] if named else [["c++"], ["g++"], ["clang++"]]:
        if shutil.which(command[0]):
            return command
    missing = (
        f"$CXX is {named[0]!r}, which is not on the path" if named else "no C++ compiler found"
    )
    raise CompileError(f"{missing}; install g++ or clang++ (Debian, Ubuntu: apt install g++)")


def load(source: Path, headers: Sequence[Path] = (), defines: Sequence[str] = ()) -> ctypes.CDLL:
    """The library made of `source`, with macros like "NAME=1" defined.

    `headers` are the files it includes beside HEADERS. If several processes ask at once, one
    compiles. If the cache folder cannot be used, or others could put their own library there, a
    temporary folder is used, with a warning.

    Raises:
        CompileError: no compiler, an error from it, or no folder for the library.
    """
    compiler = find_compiler()
    command = [*compiler, *FLAGS, *(f"-D{macro}" for macro in defines)]
    reasons: List[str] = []
    try:
        name = f"{source.stem}-{_key(compiler, command, [source, *HEADERS, *headers])}.so"
        for place in (cache_folder, temporary_folder):
            try:
                folder = place()
                library = _load_or_compile(folder, name, command, source)
            except OSError as error:
                reasons.append(str(error))
                continue
            if reasons and folder not in _announced:
                _announced.add(folder)
                logger.warning("libraries are kept in %s: %s", folder, reasons[0])
            return library
    except OSError as error:
        reasons.append(str(error))
    raise CompileError(
        f"the library of {source.name} cannot be made or loaded ({'; '.join(reasons)}); set"
        " KRON_CACHE_DIR to a folder of your own that can be written and whose libraries may be"
        " loaded"
    )


_announced: Set[Path] = set()  # folders that a warning has named


def _key(compiler: Sequence[str], command: Sequence[str], files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for part in (*command[len(compiler) :], _version(tuple(compiler)), _processor()):
        digest.update(part.encode() + b"\0")
    for path in files:
        digest.update(path.read_bytes() + b"\0")
    return digest.hexdigest()[:20]


def _load_or_compile(folder: Path, name: str, command: List[str], source: Path) -> ctypes.CDLL:
    library = made_for_code(folder) / name
    if _fault(library):
        with one_process(library, PATIENCE):
            fault = _fault(library)  # None if another process has compiled it meanwhile
            if fault:
                if library.exists():
                    logger.warning("compiling again: %s %s", library, fault)
                _compile(command, source, library)
    return ctypes.CDLL(str(library))


def _fault(library: Path) -> Optional[str]:
    """Why a library may not be loaded, or None. Loading a damaged one would end the process."""
    try:
        with library.open("rb") as file:
            distrust = why_not_trusted(os.fstat(file.fileno()))
            content = file.read()
    except FileNotFoundError:
        return "is missing"
    if content[-DIGEST_BYTES:] != hashlib.sha256(content[:-DIGEST_BYTES]).digest():
        return distrust or "is damaged"
    return distrust


def _compile(command: List[str], source: Path, library: Path) -> None:
    """Compile the library and append a checksum, which loaders ignore."""
    logger.info("compiling %s with %s, once for this machine", source.name, command[0])
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / library.name
        status, printed = _run([*command, str(source), "-o", str(made)])
        if status != 0:
            lines = printed.strip().splitlines()
            raise CompileError(f"{command[0]} failed on {source.name}: " + "\n".join(lines[:20]))
        content = made.read_bytes() if made.is_file() else b""
    if not content.startswith(b"\x7fELF"):
        raise CompileError(f"{command[0]} made no library of {source.name}, and no error")
    with atomic_write(library) as unfinished:
        unfinished.chmod(unfinished.stat().st_mode & ~0o022)  # else it would not be loaded
        unfinished.write_bytes(content + hashlib.sha256(content).digest())
    logger.info("compiled %s in %.1f s: %s", source.name, time.monotonic() - started, library)


def _run(command: Sequence[str]) -> Tuple[int, str]:
    """The exit status of a command and what it prints, in any encoding, to both streams.

    Raises:
        CompileError: it cannot be started, or takes longer than PATIENCE.
    """
    with tempfile.TemporaryFile() as output:
        try:
            process = subprocess.Popen(
                command, stdin=DEVNULL, stdout=output, stderr=STDOUT, start_new_session=True
            )
        except OSError as error:
            raise CompileError(f"{command[0]} cannot be run: {error}") from error
        try:
            status = process.wait(PATIENCE)
        except BaseException as error:  # on Ctrl-C, too, stop what the compiler started
            with suppress(ProcessLookupError):  # it may just have ended
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if isinstance(error, subprocess.TimeoutExpired):
                message = f"{command[0]} did not end within {PATIENCE:g} seconds"
                raise CompileError(message) from error
            raise
        output.seek(0)
        return status, output.read().decode(errors="replace")


@cache
def _version(compiler: Sequence[str]) -> str:
    return _run([*compiler, "--version"])[1]


@cache
def _processor() -> str:
    """What -march=native depends on: model and features."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.machine() + platform.processor()
    lines = info.read_text(errors="replace").splitlines()
    return "".join(_first(lines, key) or "" for key in ("model name", "flags", "Features"))


def _first(lines: Sequence[str], key: str) -> Optional[str]:
    return next((line for line in lines if line.startswith(key)), None)
