"""Training with several workers: no worker waits for another forever or silently."""

import os
import time
from datetime import timedelta
from functools import cache, wraps
from types import ModuleType
from typing import Callable, List

import torch.distributed as dist

from .checks import require

SECONDS = "KRON_TIMEOUT"  # environment variable: how long a worker waits for the others
MESSAGES = ("gloo", "NCCL", "ProcessGroup", "onnection closed", "onnection reset", "imed out")


def time_limit() -> timedelta:
    """How long a worker waits for the others in one exchange."""
    said = os.environ.get(SECONDS, "600")
    is_number = said.replace(".", "", 1).isdecimal() and float(said) > 0
    require(is_number, f"${SECONDS}={said}: must be a number of seconds above 0")
    return timedelta(seconds=float(said))


@cache
def with_a_time_limit(distributed: ModuleType) -> ModuleType:
    """torch.distributed with a time limit for every exchange of the workers."""
    limited = ModuleType("torch.distributed")
    vars(limited).update(vars(distributed))
    for function in (distributed.init_process_group, distributed.new_group):
        vars(limited)[function.__name__] = _with_a_time_limit(function)
    return limited


def _with_a_time_limit(function: Callable) -> Callable:
    @wraps(function)
    def call(*args, **kwargs):
        return function(*args, **{"timeout": time_limit(), **kwargs})

    return call


def name_silent_workers(distributed_main: Callable) -> Callable:
    """Name the worker that does not answer, or that ended, and why."""

    @wraps(distributed_main)
    def run(*args, **kwargs):
        try:
            return distributed_main(*args, **kwargs)
        except Exception as error:
            if not dist.is_initialized():
                raise
            explained = explain(error)
            if explained is error:
                raise
            raise explained from error

    return run


def explain(error: Exception) -> Exception:
    """The error to raise in a worker that ends by this one. If it only says that other workers do
    not answer, an error that names them; else the error itself, which the others then report.
    """
    is_about_others = isinstance(error, RuntimeError) and any(m in str(error) for m in MESSAGES)
    reason = "" if is_about_others else f"{type(error).__name__}: {error}"
    try:
        store = dist.distributed_c10d._get_default_store()
        store.set_timeout(timedelta(seconds=5))
        store.set(_key(dist.get_rank()), reason)
        return _naming_others(store) if is_about_others else error
    except RuntimeError:  # the store is gone; worker 0 keeps it unless torchrun does
        return ValueError("worker 0 does not answer") if is_about_others else error


def _naming_others(store: dist.Store) -> ValueError:
    """Names the workers that do not answer, or that have ended, and why."""
    limit = time_limit().total_seconds()
    silent = [rank for rank in range(dist.get_world_size()) if rank != dist.get_rank()]
    ended: List[str] = []
    until = time.monotonic() + max(1, limit / 10)  # they may end later than this one
    while silent and time.monotonic() < until:
        for rank in [rank for rank in silent if store.check([_key(rank)])]:
            silent.remove(rank)
            reason = store.get(_key(rank)).decode()
            ended += [f"worker {rank} has ended: {reason}"] if reason else []
        time.sleep(0.05)
    silence = [f"worker {rank} does not answer (limit {limit:g} s, ${SECONDS})" for rank in silent]
    return ValueError("; ".join(ended or silence or ["the connection of the workers broke"]))


def _key(rank: int) -> str:
    return f"kron_plugin/ended/{rank}"
