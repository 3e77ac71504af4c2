"""Every change to fairseq itself: what is changed, what the change expects to find there, and why.

fairseq drops data in silence, resumes some runs inexactly, and names parts of numpy that are gone.
Each change takes what is there and gives what takes its place.
"""

import inspect
import logging
import os
import re
from functools import cache, partial, wraps
from pathlib import Path
from pkgutil import resolve_name
from types import ModuleType, SimpleNamespace
from typing import Any, Callable, NamedTuple

import numpy as np

from . import checkpoints, console, resume, saving, workers

logger = logging.getLogger(__name__)

STATE = "kron_plugin"  # where a checkpoint has what fairseq leaves out
MARK = "_changed_by_kron_plugin"  # an attribute: the names of the changes that were made


class Patch(NamedTuple):
    """A change to fairseq."""

    target: str  # as `pkgutil.resolve_name` takes it
    expects: str  # a piece of the target's source that the change relies on
    reason: str
    change: Callable[[Any], Any]  # from what is there to what takes its place


def apply_patches() -> None:
    """Make all changes of `PATCHES` that have not been made; harmless to repeat.

    Where fairseq is not what a change expects, a warning says so and nothing is changed.
    """
    import fairseq

    checkpoints.admit_plain_types()
    for patch in PATCHES:
        owner_name, attribute = re.match(r"(.+)[.:](\w+)$", patch.target).groups()
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
    """The source of a function; of the module, for another value that a module holds."""
    return inspect.getsource(value if inspect.isfunction(value) else owner)


def take_any_batch_size(config: type) -> Callable:
    """Give --required-batch-size-multiple the default 1."""
    return partial(config, required_batch_size_multiple=1)


def take_any_batch_size_in_hydra_too(init: Callable) -> Callable:
    """The same where fairseq-hydra-train made the options before it imported this plugin."""

    @wraps(init)
    def init_trainer(self, cfg, *args, **kwargs):
        if "job_logging_cfg" in cfg and not _named_in_hydra("required_batch_size_multiple"):
            cfg.dataset.required_batch_size_multiple = 1
        init(self, cfg, *args, **kwargs)

    return init_trainer


def _named_in_hydra(option: str) -> bool:
    """Whether the command line or a file of its --config-dir or --config-path has this option."""
    from hydra._internal.utils import get_args
    from hydra.core.hydra_config import HydraConfig

    args = get_args()
    # Hydra works in a folder of its own; workers that it has spawned know the shell's alone.
    started_in = os.environ.get("PWD", "")
    if HydraConfig.initialized():
        started_in = HydraConfig.get().runtime.cwd
    folders = [Path(started_in, path) for path in (args.config_dir, args.config_path) if path]
    files = [path.read_text() for folder in folders for path in folder.rglob("*.yaml")]
    return any(option in text for text in (*args.overrides, *files))


def say_what_is_left_out(batch_by_size: Callable) -> Callable:
    """Name the examples that --required-batch-size-multiple leaves out, if only in number."""

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
    """Fill the last group of --grouped-shuffling with empty batches, as for workers that wait."""

    @wraps(ordered_batches)
    def order(self, *args, **kwargs):
        missing = -len(self.frozen_batches) % self.num_shards
        if self.grouped_shuffling and missing:
            self._frozen_batches = (*self.frozen_batches, *([[]] * missing))
        return ordered_batches(self, *args, **kwargs)

    return order


def count_every_batch(train_step: Callable) -> Callable:
    """Leave out the empty batches of an update that has others."""

    @wraps(train_step)
    def step(self, samples, *args, **kwargs):
        if self.is_fsdp:  # whose workers have to make as many forward passes each
            return train_step(self, samples, *args, **kwargs)
        full = [sample for sample in samples if sample is not None and len(sample)]
        return train_step(self, full or samples, *args, **kwargs)

    return step


def save_all_states(state_dict: Callable) -> Callable:
    """Add to a checkpoint what fairseq leaves out."""

    @wraps(state_dict)
    def save(self):
        state = state_dict(self)
        state["extra_state"][STATE] = resume.unsaved_state(self)
        return state

    return save


def load_all_states(load_checkpoint: Callable) -> Callable:
    """Go on exactly from a checkpoint of this run, unless the user resets a part of it."""

    @wraps(load_checkpoint)
    def load(cfg, trainer, **kwargs):
        extra_state, iterator = load_checkpoint(cfg, trainer, **kwargs)
        resets = (
            *(cfg.reset_optimizer, cfg.reset_lr_scheduler, cfg.reset_meters, cfg.reset_dataloader),
        )
        # After --finetune-from-model the count of updates is 0.
        if extra_state is not None and trainer.get_num_updates() > 0 and not any(resets):
            resume.restore(trainer, extra_state, extra_state.get(STATE, {}))
        resume.end_if_finished(trainer)
        return extra_state, iterator

    return load


def begin_an_epoch_once(lr_step_begin_epoch: Callable) -> Callable:
    """Do not tell the scheduler again that an epoch begins amid which a run goes on."""

    @wraps(lr_step_begin_epoch)
    def begin(self, epoch):
        if vars(self).pop("epoch_begun", None) == epoch:
            return self.lr_step_update()
        return lr_step_begin_epoch(self, epoch)

    return begin


def batch_as_in_the_first_epoch(get_batch_iterator: Callable) -> Callable:
    """Make the batches that all epochs use as the first epoch of a run never stopped made them."""

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


@cache
def with_a_time_limit(distributed: ModuleType) -> ModuleType:
    """torch.distributed as fairseq uses it, with a limit for every exchange of the workers."""
    limited = ModuleType("torch.distributed")
    vars(limited).update(vars(distributed))
    for function in (distributed.init_process_group, distributed.new_group):
        vars(limited)[function.__name__] = _with_a_time_limit(function)
    return limited


def _with_a_time_limit(function: Callable) -> Callable:
    @wraps(function)
    def call(*args, **kwargs):
        return function(*args, **{"timeout": workers.time_limit(), **kwargs})

    return call


def name_silent_workers(distributed_main: Callable) -> Callable:
    """Say which worker does not answer, or ended and why."""

    @wraps(distributed_main)
    def run(*args, **kwargs):
        try:
            return distributed_main(*args, **kwargs)
        except Exception as error:
            if not workers.dist.is_initialized():
                raise
            explained = workers.explain(error)
            if explained is error:
                raise
            raise explained from error

    return run


@cache
def with_old_names(numpy: ModuleType) -> ModuleType:
    """numpy as fairseq knows it, for its modules alone."""
    old = ModuleType("numpy")
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
        take_any_batch_size,
    ),
    Patch(
        "fairseq.trainer:Trainer.__init__",
        "self.cfg = cfg",
        "fairseq-hydra-train drops the last batch unless its size is a multiple of 8",
        take_any_batch_size_in_hydra_too,
    ),
    Patch(
        "fairseq.data.data_utils:batch_by_size",
        "if bsz_mult > 1 and len(b[-1]) % bsz_mult != 0:\n            b = b[:-1]",
        "a batch that --required-batch-size-multiple drops is not mentioned",
        say_what_is_left_out,
    ),
    Patch(
        "fairseq.data.iterators:EpochBatchIterator.ordered_batches",
        "for i in range((len(batches) // self.num_shards))",
        "--grouped-shuffling drops the batches of the last, incomplete group",
        keep_the_last_group,
    ),
    Patch(
        "fairseq.trainer:Trainer.train_step",
        "        if is_dummy_batch:\n            if torch.is_tensor(sample_size):",
        "a worker that has no batch left for --update-freq forgets those that it had",
        count_every_batch,
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
        "fairseq.optim.fp16_optimizer:_FP16OptimizerMixin.state_dict",
        "state_dict = self.fp32_optimizer.state_dict()",
        "half precision does not save the parameters that it trains",
        resume.save_masters,
    ),
    Patch(
        "fairseq.optim.fp16_optimizer:_FP16OptimizerMixin.load_state_dict",
        "self.fp32_optimizer.load_state_dict(state_dict, optimizer_overrides)",
        "half precision does not load the parameters that it trains",
        resume.load_masters,
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
        save_all_states,
    ),
    Patch(
        "fairseq.checkpoint_utils:load_checkpoint",
        "trainer.lr_step(epoch_itr.epoch)",
        "a resumed run forgets the loss of the epoch that it begins after, and these counts",
        load_all_states,
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
        begin_an_epoch_once,
    ),
    Patch(
        "fairseq.tasks:FairseqTask.get_batch_iterator",
        "with data_utils.numpy_seed(seed + epoch):",
        "batches that a run keeps for all epochs are others once it is resumed",
        batch_as_in_the_first_epoch,
    ),
    Patch(
        "fairseq.distributed.utils:dist",
        "dist.init_process_group(",
        "a worker that has stopped is waited for without end",
        with_a_time_limit,
    ),
    Patch(
        "fairseq.distributed.utils:distributed_main",
        "cfg.distributed_training.distributed_rank = distributed_init(cfg)",
        "which worker has stopped is not said",
        name_silent_workers,
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
