"""The base of our tasks: the contract with models and criterions, and data sets that drop nothing.

A task says what model it needs (`spec`), computes its own loss (`compute_loss`) and turns the sums
that the criterion logs into the field's metrics (`metrics`). The training log and `kron-eval` both
use these three.
"""

import os
from collections import defaultdict
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Callable, Dict, List, NamedTuple, Tuple, Union

import numpy as np
import torch
from fairseq.data import FairseqDataset
from fairseq.dataclass import FairseqDataclass
from fairseq.logging import metrics as fairseq_metrics
from fairseq.tasks import FairseqTask
from fairseq.tasks.fairseq_task import StatefulContainer
from omegaconf import OmegaConf
from torch import Tensor

from kron_plugin.checks import SPLITS, require, require_positive, require_seed, require_split


class Metric(NamedTuple):
    """One number of a training log or an evaluation."""

    name: str
    value: float
    unit: str


@dataclass
class Loss:
    """A batch's loss before any regulariser, as sums.

    total: the loss to minimise, summed over `count` terms. sums: other sums to log. They may stay
    scalar tensors: reading one as a float waits for a GPU.
    """

    total: Tensor
    count: int
    sums: Dict[str, Union[float, Tensor]]


class SequenceTask(FairseqTask):
    """Base of the tasks in this folder, and of a task of your own.

    A subclass needs `spec`, `load_dataset`, `compute_loss`, `metrics` and `baseline`, and with data
    `read_data`. `encode` and `decode` are for `kron_plugin.load`; the rest is for `kron-eval
    report`.

    spec: the model that the task needs.
    title: the heading of the task's section in the report; by default its registered name.
    larger_is_better: whether the headline metric grows as a model learns, as accuracy does.
    learning_curves: whether the report has a picture of the learning curves.
    """

    spec: Any  # a ModelSpec; a subclass may compute it
    title: str = ""
    larger_is_better: bool = False
    learning_curves: bool = False

    def __init__(self, cfg: Any, **kwargs: Any) -> None:
        super().__init__(_plain(cfg), **kwargs)

    @classmethod
    def setup_task(cls, cfg: Any, **kwargs: Any) -> "SequenceTask":
        """The task; for training, with its data, so that faulty ones are named before all else."""
        task = super().setup_task(cfg, **kwargs)
        if not kwargs.get("from_checkpoint"):
            task.read_data()
        return task

    # copy and pickle cannot restore fairseq's container, which looks for content before it has any.
    def __getstate__(self) -> Dict[str, Any]:
        return {**vars(self), "state": vars(self.state)}

    def __setstate__(self, kept: Dict[str, Any]) -> None:
        self.__dict__.update(kept, state=StatefulContainer())
        self.state.__dict__.update(kept["state"])

    def read_data(self) -> None:
        """Read the data, if the task has some. `__init__` should not: a trained model is used
        without them."""

    @staticmethod
    def setting(options: Dict[str, Any]) -> str:
        """The report's name for the task with these options, such as "copy memory, T = 1000".

        Args:
            options: the task's options in a record, by name; "_name" is the task's own name.
                Options that are None are absent. A data folder is the last part of its path.
        """
        return options["_name"]

    def encode(self, example: Any) -> Tensor:  # shape: (T, input_size), or (T,) of integers
        """An example of the world as the input of a model, for `kron_plugin.load`; by default it
        is one already.

        Raises:
            ValueError: it is not an example of this task.
        """
        return torch.as_tensor(example)

    def decode(self, output: Tensor) -> Any:  # shape: (T, output_size), or (output_size,)
        """What a model's output for one example says; by default the output itself."""
        return output

    def compute_loss(self, output: Tensor, sample: Dict) -> Loss:
        """The loss of a model's output for one batch."""
        raise NotImplementedError

    def metrics(self, sums: Dict[str, float]) -> List[Metric]:
        """The field's metrics, the headline first, from sums over any number of batches."""
        raise NotImplementedError

    def baseline(self, sums: Dict[str, float]) -> Metric:
        """The headline metric of a model that has learned nothing of interest, on the same data."""
        raise NotImplementedError

    def build_criterion(self, cfg, from_checkpoint: bool = False):
        require(
            cfg._name == "soft_unitary",
            f"--criterion {cfg._name}: our tasks have losses of their own; use --criterion"
            " soft_unitary (with --unitary-penalty 0 for the loss alone)",
        )
        require(
            not getattr(cfg, "sentence_avg", False),
            "--sentence-avg: our tasks train and score by the mean over all predictions; leave this"
            " option out",
        )
        return super().build_criterion(cfg, from_checkpoint)

    def build_generator(self, *args, **kwargs):
        raise ValueError(
            f"--task {self.cfg._name}: fairseq has no generator for it; `kron-eval sample"
            " CHECKPOINT` continues text and music, `kron-eval CHECKPOINT` scores"
        )

    def eval_lm_dataloader(self, *args, **kwargs):
        raise ValueError(
            f"--task {self.cfg._name}: is not a language model of fairseq; `kron-eval CHECKPOINT`"
            " scores it, and so does fairseq-validate"
        )

    def begin_epoch(self, epoch: int, model) -> None:
        started = int(os.environ.get("WORLD_SIZE", 1))
        require(
            started == 1 or torch.distributed.is_initialized(),
            f"$WORLD_SIZE={started}: this many processes run, and each would train its own model;"
            " start them by recipes/distributed.sh, or with --distributed-world-size"
            f" {started} --distributed-init-method env:// --distributed-no-spawn"
            " --distributed-rank $RANK",
        )

    def train_step(self, sample, model, criterion, optimizer, update_num, ignore_grad=False):
        is_filler = sample.get("is_filler", False)
        result = super().train_step(
            sample, model, criterion, optimizer, update_num, ignore_grad or is_filler
        )
        return _uncounted(*result) if is_filler else result

    def valid_step(self, sample, model, criterion):
        result = super().valid_step(sample, model, criterion)
        return _uncounted(*result) if sample.get("is_filler", False) else result

    def reduce_metrics(self, logging_outputs, criterion) -> None:
        """Log the metrics of all batches together; they are not means over the batches."""
        sums = add_up(logging_outputs)
        super().reduce_metrics([sums], criterion)
        for key, value in sums.items():
            fairseq_metrics.log_scalar_sum(f"_{key}", value)
        names = [metric.name for metric in self.metrics(defaultdict(float))]
        for i, name in enumerate(names):
            fairseq_metrics.log_derived(
                name, lambda meters, i=i: self.metrics(_sums_in(meters))[i].value
            )
        fairseq_metrics.log_derived(
            "baseline", lambda meters: self.baseline(_sums_in(meters)).value
        )

    def max_positions(self) -> None:
        return None


def _plain(cfg: Any) -> Any:
    """Options as plain values. omegaconf takes 25 µs to read one, which adds up over the examples
    of a batch."""
    options: Any = OmegaConf.to_container(cfg, resolve=True) if OmegaConf.is_config(cfg) else None
    return cfg if options is None else SimpleNamespace(**options)


def _uncounted(loss: Tensor, count: int, log: Dict) -> Tuple[Tensor, int, Dict]:
    """The result of the same step on no examples."""
    # Workers add up tensors apart from plain numbers, so all must have the same tensors.
    none = {
        key: torch.zeros_like(value) if isinstance(value, Tensor) else 0
        for key, value in log.items()
    }
    return loss * 0, 0, none


def _sums_in(meters) -> Dict[str, float]:
    """The sums that `reduce_metrics` has logged."""
    return {key[1:]: meter.sum for key, meter in meters.items() if key.startswith("_")}


def add_up(logging_outputs: List[Dict[str, Any]]) -> Dict[str, float]:
    """The sum of the logged numbers for each key, as a plain float."""
    sums: Dict[str, float] = defaultdict(float)
    for log in logging_outputs:
        for key, value in log.items():
            sums[key] += float(value)
    return dict(sums)


class SequenceDataset(FairseqDataset):
    """A dataset that drops no examples of an epoch. Each epoch shuffles the training split again,
    so that its batches have other members."""

    def __init__(self, shuffle: bool) -> None:
        super().__init__()
        self.shuffle = shuffle

    @property
    def can_reuse_epoch_itr_across_epochs(self) -> bool:
        return not self.shuffle

    def ordered_indices(self) -> np.ndarray:
        # fairseq seeds numpy for this call, with its own seed plus the epoch.
        return np.random.permutation(len(self)) if self.shuffle else np.arange(len(self))

    def collate(self, samples: List[Dict]) -> Dict:
        """A batch of these examples, at least one."""
        raise NotImplementedError

    def collater(self, samples: List[Dict]) -> Dict:
        """A batch. A worker that has no examples left gets one that does not count.

        If the second batch of an update were empty, fairseq would forget the first.
        """
        return self.collate(samples) if samples else {**self.collate([self[0]]), "is_filler": True}

    def num_tokens(self, index: int) -> int:
        return self.size(index)

    def batch_by_size(
        self, indices, max_tokens=None, max_sentences=None, required_batch_size_multiple=1
    ):
        # fairseq's default multiple of 8 would shorten batches and drop the remaining examples.
        return super().batch_by_size(indices, max_tokens, max_sentences, 1)


def stack(samples: List[Dict]) -> Dict:
    """A batch of examples of equal length; each has an id, a source and a target."""
    source = torch.stack([s["source"] for s in samples])
    return {
        "id": torch.tensor([s["id"] for s in samples]),
        "net_input": {"source": source},
        "target": torch.stack([s["target"] for s in samples]),
        "nsentences": len(samples),
        "ntokens": source.shape[0] * source.shape[1],
    }


@dataclass
class GeneratedConfig(FairseqDataclass):
    """Options of a task that generates its data."""

    train_examples: int = field(
        default=3200, metadata={"help": "new training examples in each epoch; they never repeat"}
    )
    eval_examples: int = field(
        default=1000, metadata={"help": "examples in each of the fixed valid and test sets"}
    )
    data_seed: int = field(default=1, metadata={"help": "seed of the data"})


class GeneratedDataset(SequenceDataset):
    """Examples made on demand by `make(rng) -> (source, target)`, all of `steps` steps.

    Example i of epoch e is the same in every run and process. Training examples change with the
    epoch; examples of the other splits do not.
    """

    def __init__(
        self,
        cfg: GeneratedConfig,
        split: str,
        steps: int,
        make: Callable[[np.random.Generator], Tuple[np.ndarray, np.ndarray]],
    ) -> None:
        super().__init__(shuffle=False)
        require_split(split)
        require_positive(cfg, "train_examples", "eval_examples")
        require_seed(cfg, "data_seed")
        self.cfg, self.split, self.steps, self.make = cfg, split, steps, make
        self.epoch = 1

    @property
    def can_reuse_epoch_itr_across_epochs(self) -> bool:
        return self.split != "train"

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch if self.split == "train" else 1

    def __len__(self) -> int:
        return self.cfg.train_examples if self.split == "train" else self.cfg.eval_examples

    def size(self, index: int) -> int:
        return self.steps

    def __getitem__(self, index: int) -> Dict:
        seed = (self.cfg.data_seed, SPLITS.index(self.split), self.epoch, index)
        source, target = self.make(np.random.default_rng(seed))
        return {"id": index, "source": torch.from_numpy(source), "target": torch.from_numpy(target)}

    def collate(self, samples: List[Dict]) -> Dict:
        return stack(samples)
