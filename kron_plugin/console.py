"""The output of fairseq's commands with LOGLEVEL=WARNING, which the recipes set.

fairseq's own lines then go only into `--log-file`, and training shows one progress bar over all
updates.
"""

import atexit
import logging
import os
import warnings
from contextlib import ExitStack, suppress
from functools import wraps
from math import inf
from typing import Any, Callable, Dict, Iterator, Optional

from .progress import Advance, progress

# Parts of warnings of fairseq and its libraries that a user cannot act on.
REMARKS = (
    "hydra.experimental",
    "The version_base parameter is not specified",
    "Usage of deprecated keyword in package header",
    "is validated against ConfigStore schema",
    "The strict flag in the compose API is deprecated",
    "'pin_memory' argument is set as true but no accelerator is found",
    "`torch.cuda.amp",
)


def silence_remarks() -> None:
    """Hide warnings that a user cannot act on."""
    for remark in REMARKS:
        warnings.filterwarnings("ignore", message=rf"\s*.*{remark}")


def hide_lines() -> None:
    """If LOGLEVEL shows only warnings, keep fairseq's lines for `--log-file`. Safe to repeat."""
    root = logging.getLogger()
    if root.level <= logging.INFO or not root.handlers:
        return
    for handler in root.handlers:
        handler.addFilter(_is_shown)
    root.setLevel(logging.INFO)  # fairseq raises it again except in the first worker


def _is_shown(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING or record.name.startswith(__package__)


def write_lines_once(make: Callable) -> Callable:
    """Close --log-file before fairseq opens it again for the next progress bar."""

    @wraps(make)
    def progress_bar(iterator, log_format=None, log_interval=100, log_file=None, **kwargs):
        log = logging.getLogger(make.__module__)
        opened = [h for h in log.handlers if isinstance(h, logging.FileHandler)]
        for handler in opened if log_file is not None else ():
            if handler.baseFilename == os.path.abspath(log_file):
                log.removeHandler(handler)
                handler.close()
        return make(iterator, log_format, log_interval, log_file, **kwargs)

    return progress_bar


def show_a_bar(make: Callable) -> Callable:
    """If fairseq's lines are hidden, move our bar with each of its bars."""
    training = TrainingBar()

    @wraps(make)
    def progress_bar(iterator, *args, **kwargs):
        bar = make(iterator, *args, **kwargs)
        root = logging.getLogger()
        is_hidden = any(_is_shown in handler.filters for handler in root.handlers)
        is_first_worker = root.level <= logging.INFO
        return ShownBar(bar, training, iterator, **kwargs) if is_hidden and is_first_worker else bar

    return progress_bar


class TrainingBar:
    """The bar of a whole training: updates, loss and the metric for the best checkpoint."""

    def __init__(self) -> None:
        self.metric = "loss"
        self.shown: Dict[str, str] = {}
        self.updates = 0
        self.advance: Optional[Advance] = None

    def begin(self, config: Dict[str, Any], updates: int, updates_per_epoch: int) -> None:
        """Begin an epoch after `updates` updates; the first epoch starts the bar."""
        if self.advance is not None:
            return
        limits = config["optimization"]
        total = min(limits["max_update"] or inf, (limits["max_epoch"] or inf) * updates_per_epoch)
        total = 0 if total == inf else int(total)
        stack = ExitStack()
        atexit.register(stack.close)
        bar = progress("training", total, "updates", updates, stays=True)
        self.advance = stack.enter_context(bar)
        self.metric = config["checkpoint"]["best_checkpoint_metric"]
        self.updates = updates

    def tell(self, stats: Dict[str, Any], updates: Optional[int], split: str = "") -> None:
        """Show what fairseq logs after `updates` updates; do nothing outside training."""
        from fairseq.logging.progress_bar import format_stat

        if self.advance is None or updates is None:
            return
        for name in (self.metric,) if split else ("loss", self.metric):
            with suppress(TypeError, ValueError):  # show only numbers
                self.shown[f"{split} {name}".strip()] = f"{float(format_stat(stats.get(name))):.3g}"
        self.advance(updates - self.updates, **self.shown)
        self.updates = updates


class ShownBar:
    """A progress bar of fairseq, of an epoch or a validation, that also moves ours."""

    def __init__(
        self,
        bar: Any,
        training: TrainingBar,
        iterator: Any,
        epoch: Optional[int] = None,
        prefix: Optional[str] = None,
        **others: Any,
    ) -> None:
        self.bar, self.training, self.is_validation = bar, training, bool(prefix)
        self.iterator, self.epoch = iterator, epoch or 1

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["bar"], name)

    def __enter__(self) -> "ShownBar":
        self.bar.__enter__()
        return self

    def __exit__(self, *raised: Any) -> Any:
        return self.bar.__exit__(*raised)

    def __len__(self) -> int:
        return len(self.bar)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.bar)

    def update_config(self, config: Dict[str, Any]) -> None:
        self.bar.update_config(config)
        updates = (self.epoch - 1) * len(self) + getattr(self.iterator, "n", 0)
        self.training.begin(config, updates, len(self))

    def log(self, stats: Dict[str, Any], tag: Optional[str] = None, step: Optional[int] = None):
        self.bar.log(stats, tag, step)
        self.training.tell(stats, step)

    def print(self, stats: Dict[str, Any], tag: Optional[str] = None, step: Optional[int] = None):
        self.bar.print(stats, tag, step)
        if self.is_validation:
            self.training.tell(stats, step, split=tag or "valid")
