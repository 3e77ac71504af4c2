"""Timing several things fairly in one process, and what the machine could do at best."""

import platform
import resource
import statistics
import time
from pathlib import Path
from typing import Callable, Dict, List

import torch

from kron_plugin.ops.native import compile as compiling


def by_clock(run: Callable[[], None]) -> float:
    """Seconds that a call takes."""
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
    """Median seconds of each candidate: one warm-up, then rounds in which all take their turn.

    What disturbs the machine for a while thus disturbs all. A candidate whose runs take less than
    a second runs once more, untimed, at each turn: the caches and pages it finds are then its own.
    One that has taken `budget` seconds sits out further rounds; if its warm-up took as long, that
    is its time.
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
    """Scalar float32 multiply-adds a second that all threads together can do, measured."""
    library = compiling.load(Path(__file__).with_name("peak.cpp"))
    steps, threads = 20_000_000, torch.get_num_threads()
    best = 0.0
    for _ in range(5):
        started = time.perf_counter()
        lanes = library.multiply_adds(steps, threads)
        best = max(best, lanes * steps * threads / (time.perf_counter() - started))
    return best


def peak_memory() -> float:
    """The most memory this process has held so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def machine() -> str:
    """The processor, its threads in use, and torch, in one line."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        model = names[0].split(":")[1].strip() if names else model
    return f"{model}, {torch.get_num_threads()} threads, torch {torch.__version__}"
