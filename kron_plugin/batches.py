"""Changes to fairseq's batches: it leaves none out, or says so."""

import logging
import os
from functools import partial, wraps
from pathlib import Path
from typing import Callable

import numpy as np

logger = logging.getLogger(__name__)


def take_any_batch_size(config: type) -> Callable:
    """Set the default of --required-batch-size-multiple to 1."""
    return partial(config, required_batch_size_multiple=1)


def take_any_batch_size_in_hydra_too(init: Callable) -> Callable:
    """The same for fairseq-hydra-train, which makes the options before it imports this plugin."""

    @wraps(init)
    def init_trainer(self, cfg, *args, **kwargs):
        if "job_logging_cfg" in cfg and not _named_in_hydra("required_batch_size_multiple"):
            cfg.dataset.required_batch_size_multiple = 1
        init(self, cfg, *args, **kwargs)

    return init_trainer


def _named_in_hydra(option: str) -> bool:
    """Whether the command line, or a file in --config-dir or --config-path, sets this option."""
    from hydra._internal.utils import get_args
    from hydra.core.hydra_config import HydraConfig

    args = get_args()
    # Hydra changes the working folder. Spawned workers know only the shell's.
    started_in = os.environ.get("PWD", "")
    if HydraConfig.initialized():
        started_in = HydraConfig.get().runtime.cwd
    folders = [Path(started_in, path) for path in (args.config_dir, args.config_path) if path]
    files = [path.read_text() for folder in folders for path in folder.rglob("*.yaml")]
    return any(option in text for text in (*args.overrides, *files))


def say_what_is_left_out(batch_by_size: Callable) -> Callable:
    """Report how many examples --required-batch-size-multiple leaves out."""

    @wraps(batch_by_size)
    def batch_or_say(indices, *args, **kwargs):
        indices = indices if isinstance(indices, np.ndarray) else np.fromiter(indices, np.int64)
        batches = batch_by_size(indices, *args, **kwargs) if len(indices) else []
        left_out = len(indices) - sum(map(len, batches))
        if left_out:
            said = (
                f"--required-batch-size-multiple: the last batch, of {left_out} of {len(indices)}"
                " examples, is left out because its size is no multiple"
            )
            if not batches:
                raise ValueError(said)
            logger.warning(said)
        return batches

    return batch_or_say


def keep_the_last_group(ordered_batches: Callable) -> Callable:
    """Fill the last group of --grouped-shuffling with empty batches instead of dropping it."""

    @wraps(ordered_batches)
    def order(self, *args, **kwargs):
        missing = -len(self.frozen_batches) % self.num_shards
        if self.grouped_shuffling and missing:
            self._frozen_batches = (*self.frozen_batches, *([[]] * missing))
        return ordered_batches(self, *args, **kwargs)

    return order


def count_every_batch(train_step: Callable) -> Callable:
    """Skip the empty batches of an update that also has full ones."""

    @wraps(train_step)
    def step(self, samples, *args, **kwargs):
        if self.is_fsdp:  # all workers must make equally many forward passes
            return train_step(self, samples, *args, **kwargs)
        full = [sample for sample in samples if sample is not None and len(sample)]
        return train_step(self, full or samples, *args, **kwargs)

    return step
