"""Time several candidates fairly in one process, and measure the machine's limits."""

import platform
import resource
import statistics
import time
from pathlib import Path
from typing import Callable, Dict, List

import torch

from kron_plugin.ops.native import compile as compiling


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


def peak_multiply_adds() -> float:
    """Scalar float32 multiply-adds a second of all threads together, as measured."""
    library = compiling.load(Path(__file__).with_name("peak.cpp"))
    steps, threads = 20_000_000, torch.get_num_threads()
    best = 0.0
    for _ in range(5):
        started = time.perf_counter()
        lanes = library.multiply_adds(steps, threads)
        best = max(best, lanes * steps * threads / (time.perf_counter() - started))
    return best


def peak_memory() -> float:
    """The peak memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def machine() -> str:
    """The processor, its threads in use, and torch, in one line."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        model = names[0].split(":")[1].strip() if names else model
    return f"{model}, {torch.get_num_threads()} threads, torch {torch.__version__}"
