"""The table of all changes to fairseq: the target, the source that the change expects, the reason.

fairseq drops data silently, resumes some runs inexactly, and uses names that numpy has removed.
Each change is a function from the original to its replacement.
"""

import inspect
import logging
import re
from functools import cache, wraps
from pkgutil import resolve_name
from types import ModuleType, SimpleNamespace
from typing import Any, Callable, NamedTuple

import numpy as np

from . import batches, checkpoints, console, resume, saving, updates, workers

logger = logging.getLogger(__name__)

MARK = "_changed_by_kron_plugin"  # an attribute of a replacement: the names of its changes


class Patch(NamedTuple):
    """A change to fairseq."""

    target: str  # a name for `pkgutil.resolve_name`
    expects: str  # a part of the target's source that the change relies on
    reason: str
    change: Callable[[Any], Any]  # from the original to its replacement


def apply_patches() -> None:
    """Make each change of `PATCHES` once. Safe to repeat.

    If the source of a target is not as expected, a warning says so and the target stays as it is.
    """
    import fairseq

    checkpoints.admit_plain_types()
    for patch in PATCHES:
        owner_name, attribute = re.split(r"[.:](?=\w+$)", patch.target)
        try:
            owner = resolve_name(owner_name)
            original = getattr(owner, attribute)
            source = _source(owner, original)
        except (ImportError, AttributeError, OSError):
            source = ""
        done = getattr(original, MARK, ()) if source else ()
        if patch.change.__name__ in done:
            continue
        if patch.expects not in source:
            logger.warning(
                "fairseq %s: %s is not patched, because its source lacks %r; the fault remains: %s",
                *(fairseq.__version__, patch.target, patch.expects, patch.reason),
            )
            continue
        changed = patch.change(original)
        setattr(changed, MARK, (*done, patch.change.__name__))
        is_static = isinstance(inspect.getattr_static(owner, attribute), staticmethod)
        setattr(owner, attribute, staticmethod(changed) if is_static else changed)


def _source(owner: Any, value: Any) -> str:
    """The source of a function; for any other value, the source of its module."""
    return inspect.getsource(value if inspect.isfunction(value) else owner)


@cache
def with_old_names(numpy: ModuleType) -> ModuleType:
    """numpy with the names that fairseq still uses, for fairseq's modules only."""
    old: Any = ModuleType("numpy")
    vars(old).update(vars(numpy), compat=SimpleNamespace(long=np.int64), int=int, float=float)

    @wraps(np.percentile)
    def percentile(*args, interpolation="linear", **kwargs):
        return np.percentile(*args, **{"method": interpolation, **kwargs})

    old.percentile = percentile
    return old


PATCHES = (
    Patch(
        "fairseq.options:DatasetConfig",
        "gen_parser_from_dataclass(group, DatasetConfig())",
        "the last batch of a data set is dropped unless its size is a multiple of 8",
        batches.take_any_batch_size,
    ),
    Patch(
        "fairseq.trainer:Trainer.__init__",
        "self.cfg = cfg",
        "fairseq-hydra-train drops the last batch unless its size is a multiple of 8",
        batches.take_any_batch_size_in_hydra_too,
    ),
    Patch(
        "fairseq.data.data_utils:batch_by_size",
        "if bsz_mult > 1 and len(b[-1]) % bsz_mult != 0:\n            b = b[:-1]",
        "a batch that --required-batch-size-multiple drops is not mentioned",
        batches.say_what_is_left_out,
    ),
    Patch(
        "fairseq.data.iterators:EpochBatchIterator.ordered_batches",
        "for i in range((len(batches) // self.num_shards))",
        "--grouped-shuffling drops the batches of the last, incomplete group",
        batches.keep_the_last_group,
    ),
    Patch(
        "fairseq.trainer:Trainer.train_step",
        "        if is_dummy_batch:\n            if torch.is_tensor(sample_size):",
        "a worker that has no batch left for --update-freq forgets those that it had",
        batches.count_every_batch,
    ),
    Patch(
        "fairseq.file_io:PathManager.copy",
        "return shutil.copyfile(src_path, dst_path)",
        "a process that is killed leaves half a checkpoint under its last name",
        resume.copy_whole_files,
    ),
    Patch(
        "fairseq.checkpoint_utils:save_checkpoint",
        "def save_checkpoint(cfg: CheckpointConfig, trainer, epoch_itr, val_loss):",
        "of several workers only the first saves what its task carries",
        resume.save_states_of_all_workers,
    ),
    Patch(
        "fairseq.checkpoint_utils:save_checkpoint",
        "def save_checkpoint(cfg: CheckpointConfig, trainer, epoch_itr, val_loss):",
        "a full disk ends a run in a traceback",
        saving.say_what_is_not_saved,
    ),
    Patch(
        "fairseq.checkpoint_utils:torch_persistent_save",
        "def torch_persistent_save(obj, filename, async_write: bool = False):",
        "a full disk leaves half a checkpoint, which keeps the next run from saving",
        saving.save_whole_files,
    ),
    Patch(
        "fairseq.checkpoint_utils:load_checkpoint_to_cpu",
        "def load_checkpoint_to_cpu(path, arg_overrides=None, load_on_all_ranks=False):",
        "a damaged or altered checkpoint ends in a traceback that does not name it",
        checkpoints.check_what_is_loaded,
    ),
    Patch(
        "fairseq.checkpoint_utils:load_model_ensemble_and_task",
        "num_shards=1,\n    state=None,",
        "a small checkpoint can claim a model of gigabytes",
        checkpoints.build_what_fits,
    ),
    Patch(
        "fairseq.trainer:Trainer.load_checkpoint",
        "extra_state, self._optim_history, last_optim_state = None, [], None",
        "a damaged checkpoint ends a run, and workers may go on from different ones",
        resume.load_whole_files,
    ),
    Patch(
        "fairseq.logging.progress_bar:progress_bar",
        "handler = logging.FileHandler(filename=log_file)",
        "each line is written once for every epoch so far, and file descriptors run out",
        console.write_lines_once,
    ),
    Patch(
        "fairseq.logging.progress_bar:progress_bar",
        "bar = JsonProgressBar(",
        "with LOGLEVEL=WARNING training shows nothing",
        console.show_a_bar,
    ),
    Patch(
        "fairseq.trainer:Trainer.state_dict",
        '"extra_state": {',
        "the counts of schedulers, --patience and --ema-update-freq are not saved",
        resume.save_all_states,
    ),
    Patch(
        "fairseq.checkpoint_utils:load_checkpoint",
        "trainer.lr_step(epoch_itr.epoch)",
        "a resumed run forgets the loss of the epoch that it begins after, and these counts",
        resume.load_all_states,
    ),
    Patch(
        "fairseq.checkpoint_utils:load_checkpoint",
        "def load_checkpoint(cfg: CheckpointConfig, trainer, **passthrough_args):",
        "two runs that save into one folder spoil each other's checkpoints",
        saving.train_alone,
    ),
    Patch(
        "fairseq.trainer:Trainer.lr_step_begin_epoch",
        "self.lr_scheduler.step_begin_epoch(epoch)",
        "a run resumed amid an epoch begins it twice",
        resume.begin_an_epoch_once,
    ),
    Patch(
        "fairseq.tasks:FairseqTask.get_batch_iterator",
        "with data_utils.numpy_seed(seed + epoch):",
        "batches that a run keeps for all epochs are others once it is resumed",
        resume.batch_as_in_the_first_epoch,
    ),
    Patch(
        "fairseq.distributed.utils:dist",
        "dist.init_process_group(",
        "a worker that has stopped is waited for without end",
        workers.with_a_time_limit,
    ),
    Patch(
        "fairseq.distributed.utils:distributed_main",
        "cfg.distributed_training.distributed_rank = distributed_init(cfg)",
        "which worker has stopped is not said",
        workers.name_silent_workers,
    ),
    Patch(
        "fairseq.trainer:Trainer._set_seed",
        "seed = self.cfg.common.seed + self.get_num_updates()\n        utils.set_torch_seed(seed)",
        "without a GPU, seeding each update takes a millisecond for GPUs that are not there",
        updates.seed_the_cpu_alone,
    ),
    Patch(
        "omegaconf:DictConfig.__getattr__",
        "key=key, default_value=_DEFAULT_MARKER_, validate_key=False",
        "each update takes a millisecond to read fairseq's options",
        updates.read_plain_values_at_once,
    ),
    *(
        Patch(
            f"fairseq.{module}:np",
            name,
            f"numpy has no {name} any more",
            with_old_names,
        )
        for module, name in (
            ("data.data_utils", 'interpolation="lower"'),
            ("data.language_pair_dataset", "np.compat.long"),
            ("data.token_block_dataset", "np.compat.long"),
            ("modules.dynamic_crf_layer", 'np.float("inf")'),
        )
    ),
)
