"""What the toolkit lacks to go on from a checkpoint exactly, whenever the run before was killed.

It writes a checkpoint under another name and renames it, but makes those after the first by copying
over them: a process killed meanwhile would leave `checkpoint_last.pt` truncated, beside a whole
one. Only the first of several workers saves, from which the others' states would be missing. And in
half precision it saves the rounded parameters, not those in float32 that it trains.
"""

import logging
from functools import wraps
from math import inf
from pathlib import Path

from torch import distributed

from .checkpoints import is_damaged
from .files import finished

NOTHING_LEFT = "nothing is left to train"  # said of a run that had come to its end
logger = logging.getLogger("fairseq_cli.train")  # the toolkit's, which writes into --log-file


def latest_whole(path: Path) -> Path:
    """The checkpoint to go on from: this one, or if it is damaged the latest whole one beside it.

    Raises:
        ValueError: it is damaged and there is no other.
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


def make_exact() -> None:
    """Have the toolkit save and load so that a run resumes exactly; harmless to repeat."""
    from fairseq import checkpoint_utils
    from fairseq.file_io import PathManager
    from fairseq.trainer import Trainer

    _keep_masters()
    copy = PathManager.copy
    save, load = checkpoint_utils.save_checkpoint, Trainer.load_checkpoint
    if hasattr(load, "__wrapped__"):
        return

    @wraps(copy)
    def copy_whole(src_path, dst_path, overwrite=False):
        if "://" in str(dst_path):
            return copy(src_path, dst_path, overwrite)
        with finished(Path(dst_path)) as unfinished:
            return copy(src_path, str(unfinished), overwrite)

    @wraps(save)
    def save_all(cfg, trainer, *args, **kwargs):
        gather = getattr(trainer.task, "gather_states", None)
        if gather is not None:
            gather()
        return save(cfg, trainer, *args, **kwargs)

    @wraps(load)
    def load_whole(trainer, filename, *args, **kwargs):
        path = Path(filename)
        ours = path.parent.resolve() == Path(trainer.cfg.checkpoint.save_dir).resolve()
        if ours and path.name.startswith("checkpoint_last"):  # not one that the user has named
            path = latest_whole(path)
            if path != Path(filename) and trainer.is_data_parallel_master:
                copy_whole(str(path), filename, overwrite=True)
        extra_state = load(trainer, str(path), *args, **kwargs)
        _agree(trainer, path)
        if trainer.get_num_updates() >= (trainer.cfg.optimization.max_update or inf):
            # The toolkit would find out only after one more.
            logger.info("%s: --max-update is reached, %s", path, NOTHING_LEFT)
            raise SystemExit
        return extra_state

    PathManager.copy = staticmethod(copy_whole)
    checkpoint_utils.save_checkpoint, Trainer.load_checkpoint = save_all, load_whole


def _keep_masters() -> None:
    """Have half precision's float32 parameters saved and loaded with the optimiser's state."""
    from fairseq.optim.fp16_optimizer import _FP16OptimizerMixin

    save, load = _FP16OptimizerMixin.state_dict, _FP16OptimizerMixin.load_state_dict

    def masters(optimizer) -> list:
        params = optimizer.fp32_params
        return list(params.values()) if optimizer.has_flat_params else params

    @wraps(save)
    def state_dict(self):
        return {**save(self), "fp32_params": [p.detach() for p in masters(self)]}

    @wraps(load)
    def load_state_dict(self, state_dict, optimizer_overrides=None):
        load(self, state_dict, optimizer_overrides)
        for param, saved in zip(masters(self), state_dict.get("fp32_params", ()), strict=False):
            param.data.copy_(saved)

    _FP16OptimizerMixin.state_dict = state_dict
    _FP16OptimizerMixin.load_state_dict = load_state_dict


def _agree(trainer, path: Path) -> None:
    """Raise a ValueError unless all workers go on from the same update."""
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
