"""Changes to fairseq so that a killed run resumes exactly.

fairseq writes one checkpoint under another name and renames it, but copies it over the others: a
process killed meanwhile leaves a truncated `checkpoint_last.pt` beside a whole one. Only the first
of several workers saves, so the states of the others are lost. The counts of a plateau scheduler,
--patience and --ema-update-freq are not saved.
"""

import logging
import sys
from functools import wraps
from math import inf
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, Optional

from torch import distributed
from torch.optim.lr_scheduler import LRScheduler

from .checkpoints import is_damaged, named
from .files import atomic_write

STATE = "kron_plugin"  # the key in a checkpoint for what fairseq does not save
NOTHING_LEFT = "nothing is left to train"  # the message for a run that is complete
logger = logging.getLogger("fairseq_cli.train")  # fairseq's logger, which writes into --log-file


def latest_whole(path: Path) -> Path:
    """The checkpoint to resume from: this one, or if it is damaged the latest whole one beside it.

    Raises:
        ValueError: it is damaged and there is no whole one.
    """
    if not path.is_file() or not is_damaged(path):
        return path
    others = (other for other in path.parent.glob("checkpoint*.pt") if other != path)
    for other in sorted(others, key=lambda p: p.stat().st_mtime_ns, reverse=True):
        if not is_damaged(other):
            logger.warning("%s is damaged; going on from %s", path, other.name)
            return other
    raise ValueError(
        f"{path}: damaged, and no whole checkpoint beside it; remove it to train from the start"
    )


def copy_whole_files(copy: Callable) -> Callable:
    """Copy a checkpoint under another name, and rename it when it is complete."""

    @wraps(copy)
    def copy_whole(src_path, dst_path, overwrite=False):
        if "://" in str(dst_path):
            return copy(src_path, dst_path, overwrite)
        with atomic_write(Path(dst_path)) as unfinished:
            return copy(src_path, str(unfinished), overwrite=True)

    return copy_whole


def save_states_of_all_workers(save: Callable) -> Callable:
    """Gather the states that the tasks of all workers carry."""

    @wraps(save)
    def save_all(cfg, trainer, *args, **kwargs):
        gather = getattr(trainer.task, "gather_states", None)
        if gather is not None:
            gather()
        return save(cfg, trainer, *args, **kwargs)

    return save_all


def load_whole_files(load: Callable) -> Callable:
    """Resume from the latest whole checkpoint, and from the same one in all workers."""

    @wraps(load)
    def load_whole(trainer, filename, *args, **kwargs):
        from fairseq.file_io import PathManager

        path = Path(filename)
        ours = path.parent.resolve() == Path(trainer.cfg.checkpoint.save_dir).resolve()
        if ours and path.name.startswith("checkpoint_last"):  # not a file that the user has named
            path = latest_whole(path)
            if path != Path(filename) and trainer.is_data_parallel_master:
                PathManager.copy(str(path), filename, overwrite=True)
        with named(path, "cannot be resumed"):
            extra_state = load(trainer, str(path), *args, **kwargs)
        _agree(trainer, path)
        return extra_state

    return load_whole


def unsaved_state(trainer) -> Dict[str, Any]:
    """What the rest of a run depends on and fairseq does not save."""
    stop = vars(_early_stop())
    return {
        "lr_schedulers": [_scheduler_state(s) for s in _schedulers(trainer.lr_scheduler)],
        "lr_scheduler_options": _scheduler_options(trainer),
        "lr": [group["lr"] for group in trainer.optimizer.param_groups],
        "patience": {name: stop[name] for name in ("best", "num_runs") if name in stop},
        "ema_updates": trainer.ema.update_freq_counter if trainer.cfg.ema.store_ema else 0,
    }


def restore(trainer, extra_state: Dict[str, Any], unsaved: Dict[str, Any]) -> None:
    """Bring a trainer that has loaded a checkpoint into the state of the run that wrote it.

    At the end of an epoch fairseq saves before the scheduler learns the loss. After a checkpoint
    within an epoch it would tell the scheduler again that the epoch begins. If the scheduler's
    options have changed, the new ones apply as far as fairseq uses them, as does
    --optimizer-overrides.
    """
    iterator = extra_state["train_iterator"]
    options = _scheduler_options(trainer)
    same_options = options is not None and options == unsaved.get("lr_scheduler_options")
    same_options &= trainer.cfg.checkpoint.optimizer_overrides == "{}"
    if same_options:
        schedulers = _schedulers(trainer.lr_scheduler)
        for scheduler, state in zip(schedulers, unsaved["lr_schedulers"], strict=True):
            _restore_scheduler(scheduler, state)
        for group, lr in zip(trainer.optimizer.param_groups, unsaved["lr"], strict=True):
            group["lr"] = lr
    done = iterator.get("iterations_in_epoch")  # None for a streaming iterator
    if done == 0:
        trainer.lr_step(iterator["epoch"] - 1, extra_state.get("val_loss"))
    elif done and same_options:
        trainer.epoch_begun = iterator["epoch"]
    vars(_early_stop()).update(unsaved.get("patience", {}))
    if trainer.cfg.ema.store_ema:
        trainer.ema.update_freq_counter = unsaved.get("ema_updates", 0)


def save_all_states(state_dict: Callable) -> Callable:
    """Add to a checkpoint what fairseq does not save."""

    @wraps(state_dict)
    def save(self):
        state = state_dict(self)
        state["extra_state"][STATE] = unsaved_state(self)
        return state

    return save


def load_all_states(load_checkpoint: Callable) -> Callable:
    """Resume exactly from a checkpoint of this run, unless the user resets a part of it."""

    @wraps(load_checkpoint)
    def load(cfg, trainer, **kwargs):
        extra_state, iterator = load_checkpoint(cfg, trainer, **kwargs)
        resets = (
            *(cfg.reset_optimizer, cfg.reset_lr_scheduler, cfg.reset_meters, cfg.reset_dataloader),
        )
        # After --finetune-from-model the count of updates is 0.
        if extra_state is not None and trainer.get_num_updates() > 0 and not any(resets):
            restore(trainer, extra_state, extra_state.get(STATE, {}))
        end_if_finished(trainer)
        return extra_state, iterator

    return load


def begin_an_epoch_once(lr_step_begin_epoch: Callable) -> Callable:
    """Do not begin the epoch again for the scheduler if a run resumes within it."""

    @wraps(lr_step_begin_epoch)
    def begin(self, epoch):
        if vars(self).pop("epoch_begun", None) == epoch:
            return self.lr_step_update()
        return lr_step_begin_epoch(self, epoch)

    return begin


def batch_as_in_the_first_epoch(get_batch_iterator: Callable) -> Callable:
    """Make batches that all epochs share with the seed of the first epoch, in a resumed run too."""

    @wraps(get_batch_iterator)
    def get(self, dataset, *args, **kwargs):
        epoch = kwargs.get("epoch", 1)
        kept = self.can_reuse_epoch_itr(dataset) and not (
            kwargs.get("disable_iterator_cache") or kwargs.get("update_epoch_batch_itr")
        )
        if epoch == 1 or not kept or dataset in self.dataset_to_epoch_iter:
            return get_batch_iterator(self, dataset, *args, **kwargs)
        iterator = get_batch_iterator(self, dataset, *args, **{**kwargs, "epoch": 1})
        iterator.epoch = epoch
        dataset.set_epoch(epoch)
        return iterator

    return get


def end_if_finished(trainer) -> None:
    """End the command if the run is complete; fairseq would make one more update first."""
    cfg = trainer.cfg
    runs, hours = getattr(_early_stop(), "num_runs", 0), trainer.cumulative_training_time() / 3600
    reached = {
        "--max-update": trainer.get_num_updates() >= (cfg.optimization.max_update or inf),
        "--patience": runs >= cfg.checkpoint.patience > 0,
        "--stop-time-hours": hours > cfg.optimization.stop_time_hours > 0,
    }
    for option in (option for option, is_reached in reached.items() if is_reached):
        logger.info("%s: %s is reached, %s", cfg.checkpoint.save_dir, option, NOTHING_LEFT)
        raise SystemExit


def _early_stop() -> Callable:
    """fairseq's function for --patience; its attributes hold the counts."""
    main = sys.modules["__main__"]  # has it with `python -m fairseq_cli.train`
    if hasattr(main, "should_stop_early"):
        return main.should_stop_early
    from fairseq_cli import train

    return train.should_stop_early


def _scheduler_options(trainer) -> Optional[Dict[str, Any]]:
    """The options of the scheduler; None if it has no configuration."""
    from omegaconf import OmegaConf

    cfg = trainer.cfg.lr_scheduler
    if getattr(cfg, "_name", None) == "pass_through":
        cfg = trainer.cfg.optimizer
    options: Any = OmegaConf.to_container(cfg, resolve=True) if OmegaConf.is_config(cfg) else None
    return options


def _schedulers(scheduler) -> Iterator[Any]:
    """A scheduler, and those of a composite optimiser, which do the work of `pass_through`."""
    yield scheduler
    inner = getattr(scheduler.optimizer, "lr_scheduler", None)
    yield from getattr(inner, "lr_schedulers", {}).values()


def _scheduler_state(scheduler) -> Dict[str, Any]:
    """All plain values of a scheduler, and the state of torch's scheduler in it, if any."""
    state: Dict[str, Any] = {}
    for name, value in vars(scheduler).items():
        if isinstance(value, LRScheduler):
            state[name] = value.state_dict()
        elif isinstance(value, (bool, int, float, str, type(None))):
            state[name] = value
    return state


def _restore_scheduler(scheduler, state: Dict[str, Any]) -> None:
    for name, value in state.items():
        if isinstance(getattr(scheduler, name), LRScheduler):
            getattr(scheduler, name).load_state_dict(value)
        else:
            setattr(scheduler, name, value)


def _agree(trainer, path: Path) -> None:
    """Raise a ValueError unless all workers resume from the same update."""
    workers = trainer.data_parallel_world_size
    if workers == 1:
        return
    updates = [0] * workers
    distributed.all_gather_object(updates, trainer.get_num_updates())
    if len(set(updates)) > 1:
        raise ValueError(
            f"--save-dir: the workers' checkpoints {path} are after {updates} updates; workers need"
            " a folder that all of them see"
        )
