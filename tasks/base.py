"""What our tasks share: the contract with models and criterions, and data that is never dropped.

A task says what model it needs (`spec`), computes its own loss (`compute_loss`) and turns the sums
that the criterion logs into the field's metrics (`metrics`). The training log and `kron-eval` both
go through the same three.
"""

import os
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, List, NamedTuple, Tuple

import numpy as np
import torch
from fairseq.data import FairseqDataset
from fairseq.dataclass import FairseqDataclass
from fairseq.logging import metrics as fairseq_metrics
from fairseq.tasks import FairseqTask
from torch import Tensor

from kron_plugin.checks import SPLITS, require, require_positive, require_seed, require_split
from kron_plugin.models.options import ModelSpec


class Metric(NamedTuple):
    """One number of a training log or an evaluation."""

    name: str
    value: float
    unit: str


@dataclass
class Loss:
    """A batch's loss before any regulariser, as sums.

    total: what is minimised, summed over `count` terms. sums: further sums to log, plain floats.
    """

    total: Tensor
    count: int
    sums: Dict[str, float]


class SequenceTask(FairseqTask):
    """Base of the tasks in this folder, and of a task of your own.

    A subclass needs `spec`, `load_dataset`, `compute_loss`, `metrics` and `baseline`; the rest is
    for `kron-eval report`.

    spec: the model that the task needs.
    title: of the task's section in the report; by default its registered name.
    larger_is_better: whether the headline metric grows as a model learns, as accuracy does.
    learning_curves: whether the report has a picture of them.
    """

    spec: ModelSpec
    title: str = ""
    larger_is_better: bool = False
    learning_curves: bool = False

    @staticmethod
    def setting(options: Dict[str, Any]) -> str:
        """What the report calls a task with these options, such as "copy memory, T = 1000".

        Args:
            options: those of a record: by name, with the task's own name as "_name"; without those
                that are None. Of a data folder they have the last part alone.
        """
        return options["_name"]

    def compute_loss(self, output: Tensor, sample: Dict) -> Loss:
        """The loss of a model's output for one batch."""
        raise NotImplementedError

    def metrics(self, sums: Dict[str, float]) -> List[Metric]:
        """The field's metrics, the headline first, from sums over any number of batches."""
        raise NotImplementedError

    def baseline(self, sums: Dict[str, float]) -> Metric:
        """What a model that has learned nothing of interest reaches on the headline metric, over
        the same data."""
        raise NotImplementedError

    def build_criterion(self, cfg, from_checkpoint: bool = False):
        require(
            cfg._name == "soft_unitary",
            f"--criterion {cfg._name}: our tasks have losses of their own; use --criterion"
            " soft_unitary (with --unitary-penalty 0 for the loss alone)",
        )
        require(
            not getattr(cfg, "sentence_avg", False),
            "--sentence-avg: our tasks are scored, and trained, by the mean over all they predict;"
            " leave it away",
        )
        return super().build_criterion(cfg, from_checkpoint)

    def build_generator(self, *args, **kwargs):
        raise ValueError(
            f"--task {self.cfg._name}: fairseq has no generator for it; `kron-eval sample"
            " CHECKPOINT` goes on with text and music, `kron-eval CHECKPOINT` scores"
        )

    def eval_lm_dataloader(self, *args, **kwargs):
        raise ValueError(
            f"--task {self.cfg._name}: is no language model of fairseq's; `kron-eval CHECKPOINT`"
            " scores, and so does fairseq-validate"
        )

    def begin_epoch(self, epoch: int, model) -> None:
        started = int(os.environ.get("WORLD_SIZE", 1))
        require(
            started == 1 or torch.distributed.is_initialized(),
            f"$WORLD_SIZE={started}: as many processes were started, and each would train a model"
            " of its own; start them by recipes/distributed.sh, or with --distributed-world-size"
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
        """Log the metrics of all batches together, which are no means of those of each."""
        super().reduce_metrics(logging_outputs, criterion)
        for key, value in add_up(logging_outputs).items():
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


def _uncounted(loss: Tensor, count: int, log: Dict) -> Tuple[Tensor, int, Dict]:
    """A step's result as it would be of no examples."""
    return loss * 0, 0, dict.fromkeys(log, 0)


def _sums_in(meters) -> Dict[str, float]:
    """The sums that `reduce_metrics` has logged."""
    return {key[1:]: meter.sum for key, meter in meters.items() if key.startswith("_")}


def add_up(logging_outputs: List[Dict[str, float]]) -> Dict[str, float]:
    """Key by key, the sums of the logged numbers as plain floats."""
    keys = {key for log in logging_outputs for key in log}
    return {key: float(sum(log.get(key, 0) for log in logging_outputs)) for key in keys}


class SequenceDataset(FairseqDataset):
    """A dataset that fairseq batches without dropping the rest of an epoch, and whose training
    split is shuffled anew each epoch, members of a batch included."""

    def __init__(self, shuffle: bool) -> None:
        super().__init__()
        self.shuffle = shuffle

    @property
    def can_reuse_epoch_itr_across_epochs(self) -> bool:
        return not self.shuffle

    def ordered_indices(self) -> np.ndarray:
        # fairseq seeds numpy with its own seed plus the epoch around this call.
        return np.random.permutation(len(self)) if self.shuffle else np.arange(len(self))

    def collate(self, samples: List[Dict]) -> Dict:
        """A batch of these examples, at least one."""
        raise NotImplementedError

    def collater(self, samples: List[Dict]) -> Dict:
        """A batch; of no examples, for a worker that has none left, one that does not count.

        Where it is the second of an update fairseq would forget the first, if left to itself.
        """
        return self.collate(samples) if samples else {**self.collate([self[0]]), "is_filler": True}

    def num_tokens(self, index: int) -> int:
        return self.size(index)

    def batch_by_size(
        self, indices, max_tokens=None, max_sentences=None, required_batch_size_multiple=1
    ):
        # fairseq's default multiple of 8 would cut batches short and drop what is left over.
        return super().batch_by_size(indices, max_tokens, max_sentences, 1)


def stack(samples: List[Dict]) -> Dict:
    """A batch of examples of one length; each has an id, a source and a target."""
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
    """Options of a task that makes its data itself."""

    train_examples: int = field(
        default=3200, metadata={"help": "new training examples in each epoch; they never repeat"}
    )
    eval_examples: int = field(
        default=1000, metadata={"help": "examples in the fixed valid and test sets, each"}
    )
    data_seed: int = field(default=1, metadata={"help": "seed of the data"})


class GeneratedDataset(SequenceDataset):
    """Examples made on demand by `make(rng) -> (source, target)`, all of `steps` steps.

    Example i of epoch e is the same in every run and process; training examples change with the
    epoch, those of the other splits never.
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
