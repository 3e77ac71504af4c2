"""C++ sources to loaded libraries: compiled once with the system compiler, then found in a cache.

They are kept in `kron_plugin.cache.cache_folder()`. The name of a library holds a hash of all that
went into it: sources, flags, compiler and processor.
"""

import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import time
from functools import cache
from pathlib import Path
from typing import List, Optional, Sequence

from ...cache import cache_folder
from ...files import finished

logger = logging.getLogger(__name__)

# Results may differ from strict floating point only in fused multiply-adds: NaN and inf survive.
FLAGS = (
    *("-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", "-pthread"),
    *("-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"),
)


class CompileError(RuntimeError):
    """The library cannot be had; the message says why, and what to do."""


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

    `headers` are what it includes beside HEADERS.
    Several processes may ask at once: each compiles to a name of its own, and moves the result into
    place in one step.

    Raises:
        CompileError: no compiler, an error from it, or a cache folder that cannot be written.
    """
    compiler = find_compiler()
    flags = [*FLAGS, *(f"-D{macro}" for macro in defines)]
    digest = hashlib.sha256()
    for part in (*flags, _version(tuple(compiler)), _processor()):
        digest.update(part.encode() + b"\0")
    for path in (source, *HEADERS, *headers):
        digest.update(path.read_bytes() + b"\0")
    name = f"{source.stem}-{digest.hexdigest()[:20]}.so"
    try:
        return _load_or_compile(cache_folder() / name, [*compiler, *flags], source)
    except CompileError:
        raise
    except OSError as error:
        raise CompileError(
            f"{name} cannot be made or loaded ({error}); set KRON_CACHE_DIR to a folder"
            " that can be written and whose libraries may be loaded"
        ) from error


def _load_or_compile(library: Path, command: List[str], source: Path) -> ctypes.CDLL:
    if library.exists():
        try:
            return ctypes.CDLL(str(library))
        except OSError as error:
            logger.warning("compiling again, for it cannot be loaded: %s", error)
    _compile(command, source, library)
    return ctypes.CDLL(str(library))


def _compile(command: List[str], source: Path, library: Path) -> None:
    library.parent.mkdir(parents=True, exist_ok=True)
    logger.info("compiling %s with %s, once for this machine", source.name, command[0])
    started = time.monotonic()
    with finished(library) as unfinished:
        result = subprocess.run(
            [*command, str(source), "-o", str(unfinished)], capture_output=True, text=True
        )
        if result.returncode != 0:
            lines = (result.stderr or result.stdout).strip().splitlines()
            raise CompileError(f"{command[0]} failed on {source.name}: " + "\n".join(lines[:20]))
    logger.info("compiled %s in %.1f s: %s", source.name, time.monotonic() - started, library)


@cache
def _version(compiler: Sequence[str]) -> str:
    return subprocess.run([*compiler, "--version"], capture_output=True, text=True).stdout


@cache
def _processor() -> str:
    """What -march=native depends on: model and features."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.machine() + platform.processor()
    lines = info.read_text().splitlines()
    return "".join(_first(lines, key) or "" for key in ("model name", "flags", "Features"))


def _first(lines: Sequence[str], key: str) -> Optional[str]:
    return next((line for line in lines if line.startswith(key)), None)
