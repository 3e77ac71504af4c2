"""Which implementation of an operation runs, and why."""

import logging
from functools import cache
from typing import Callable, Dict, List, NamedTuple, Optional

import torch
from torch.autograd import forward_ad

logger = logging.getLogger(__name__)


class BackendError(ValueError, RuntimeError):
    """The requested backend cannot serve."""


class Problem(NamedTuple):
    """What a backend must know to decide whether it can serve."""

    device: torch.device
    dtype: torch.dtype  # of the states, a real type
    is_complex: bool
    is_batched: bool = False  # whether factors come in batches


class Backend(NamedTuple):
    """One implementation of an operation.

    device: the type of device that it serves, None for any.
    obstacle: the reason why it cannot serve a problem, or None.
    run: the operation itself.
    """

    device: Optional[str]
    obstacle: Callable[[Problem], Optional[str]]
    run: Callable


def compute_type(dtype: torch.dtype) -> torch.dtype:
    """The type in which the fused backends compute with states of type `dtype`."""
    return dtype if dtype == torch.float64 else torch.float32


class Backends:
    """The implementations of one operation by name, the fastest first."""

    def __init__(self, operation: str, table: Dict[str, Backend]) -> None:
        self.operation = operation
        self.table = table

    def available(self, problem: Problem) -> List[str]:
        """Those that can serve, fastest first. May compile one to find out."""
        return [name for name in self.table if self._obstacle(name, problem) is None]

    def check(self, name: str) -> None:
        """Raise a ValueError unless there is a backend of that name, or it is "auto"."""
        if name not in ("auto", *self.table):
            raise ValueError(f"backend={name!r}: choose one of auto, {', '.join(self.table)}")

    def choose(self, name: str, problem: Problem) -> str:
        """The backend to use: the named one, or for "auto" the fastest that can serve.

        Raises:
            ValueError: there is no backend of that name.
            BackendError: the named backend cannot serve; the message says what is missing.
        """
        self.check(name)
        if name == "auto":
            return self._fastest(problem)
        reason = self._obstacle(name, problem)
        if reason is not None:
            raise BackendError(f"backend={name!r} cannot serve: {reason}")
        return name

    def _fastest(self, problem: Problem) -> str:
        reasons: List[str] = []
        for name, backend in self.table.items():
            if backend.device not in (None, problem.device.type):
                continue
            reason = self._obstacle(name, problem)
            if reason is None:
                if reasons:
                    log_once(f"{self.operation} runs on the {name} backend: {'; '.join(reasons)}")
                return name
            reasons.append(f"{name}: {reason}")
        raise RuntimeError(f"{self.operation}: no backend can serve: {'; '.join(reasons)}")

    def _obstacle(self, name: str, problem: Problem) -> Optional[str]:
        device = self.table[name].device
        if device not in (None, problem.device.type):
            reason = f"it serves tensors on a {device} device, not on {problem.device}"
            no_gpu = device == "cuda" and not torch.cuda.is_available()
            return reason + (", and torch finds no GPU here" if no_gpu else "")
        if device is not None and _is_transformed():
            return "torch.func and forward-mode differentiation want backend='reference'"
        return self.table[name].obstacle(problem)

    def run(self, name: str, problem: Problem) -> Callable:
        """The implementation of the backend that `choose` returns, also in a traced graph."""
        return self.table[_choose(self, name, *problem)].run


def _is_transformed() -> bool:
    """Whether a transform of torch.func or forward-mode differentiation is active. Kernels take no
    part in them: the tangent would be lost without a word."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def constant_in_graphs(function: Callable) -> Callable:
    """Let a traced graph hold the function's result from the time of tracing.

    `torch.compiler.assume_constant_result` does the same, but imports the compiler, which takes a
    second even if nobody compiles.
    """
    vars(function)["_dynamo_marked_constant"] = True
    return function


@constant_in_graphs
def _choose(backends: Backends, name: str, *problem) -> str:
    return backends.choose(name, Problem(*problem))


@cache
def log_once(message: str) -> None:
    """Log a warning, unless this process has logged it before."""
    logger.warning(message)
