"""Time several candidates fairly in one process, and measure the machine's limits."""

import platform
import re
import statistics
import time
from ctypes import c_int64, c_void_p
from functools import cache
from pathlib import Path
from typing import Callable, Dict, List, Tuple

import torch

from kron_plugin.ops.native import compile as compiling

PEAK = Path(__file__).with_name("peak.cpp")
LARGE = 2**28  # bytes, more than caches hold


def by_clock(run: Callable[[], None]) -> float:
    """The seconds of a call."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def by_events(run: Callable[[], None]) -> float:
    """Seconds that the GPU works for a call, or waits for its next launch."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000


def interleave(
    candidates: Dict[str, Callable[[], None]],
    rounds: int = 5,
    budget: float = 40.0,
    seconds: Callable[[Callable[[], None]], float] = by_clock,
) -> Dict[str, float]:
    """Median seconds of each candidate: one warm-up, then rounds in which each runs once.

    A temporary disturbance of the machine thus affects all candidates. A candidate whose runs take
    less than a second runs once more, untimed, before each timed run, so that it finds its own
    caches and pages. A candidate that has taken `budget` seconds skips further rounds; if its
    warm-up took that long, the warm-up is its time.
    """
    times: Dict[str, List[float]] = {name: [] for name in candidates}
    for _ in range(rounds + 1):
        for name, run in candidates.items():
            if sum(times[name]) < budget:
                if times[name] and times[name][-1] < 1:
                    run()
                times[name].append(seconds(run))
    return {name: statistics.median(runs[1:] or runs) for name, runs in times.items()}


@cache
def peak_multiply_adds(threads: int) -> float:
    """Scalar float32 multiply-adds a second of all threads together, as measured."""
    library, steps = compiling.load(PEAK), 20_000_000
    lanes = library.multiply_adds(1, 1)
    seconds = min(by_clock(lambda: library.multiply_adds(steps, threads)) for _ in range(20))
    return lanes * steps * threads / seconds


def bandwidth(size: int, threads: int) -> Tuple[float, float]:
    """Bytes a second that are read, and written, in an array of `size` bytes that was used before.

    Sizes are rounded up to a power of two, and taken as `LARGE` above that."""
    return _bandwidth(min(max(1 << 16, 1 << (size - 1).bit_length()), LARGE), threads)


@cache
def _bandwidth(size: int, threads: int) -> Tuple[float, float]:
    library, times = compiling.load(PEAK), LARGE // size
    array, sums = torch.empty(size, dtype=torch.uint8), torch.zeros(threads)
    given = (c_void_p(array.data_ptr()), c_int64(size), times, threads)
    library.begin_array(*given[:2])
    calls = (
        lambda: library.read_array(*given, c_void_p(sums.data_ptr())),
        lambda: library.write_array(*given),
    )
    best = (min(by_clock(call) for _ in range(5)) for call in calls)
    read, written = (times * size / seconds for seconds in best)
    return read, written


def memory() -> float:
    """What this process has in memory now, in MiB; and `peak_memory` counts from here on."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak_memory() -> float:
    """The most that it had, in MiB. `getrusage` would count what its parent had, too."""
    return _status("VmHWM")


def _status(key: str) -> float:
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{key}:\s+(\d+)", status)[1]) / 1024


def machine() -> str:
    """The processor, its threads in use, and torch, in one line."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        model = names[0].split(":")[1].strip() if names else model
    return f"{model}, {torch.get_num_threads()} threads, torch {torch.__version__}"
