"""What our tasks share: the contract with models and criterions, and data that is never dropped.

A task says what model it needs (`spec`), computes its own loss (`compute_loss`) and turns the sums
that the criterion logs into the field's metrics (`metrics`). The training log and `kron-eval` both
go through the same three.
"""

from dataclasses import dataclass
from typing import Dict, List, NamedTuple, Tuple

import numpy as np
from fairseq.data import FairseqDataset
from fairseq.logging import metrics as fairseq_metrics
from fairseq.tasks import FairseqTask
from torch import Tensor

from kron_plugin.models.spec import ModelSpec

SPLITS = ("train", "valid", "test")


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
    """Base of the tasks in this folder."""

    spec: ModelSpec

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

    def reduce_metrics(self, logging_outputs, criterion) -> None:
        super().reduce_metrics(logging_outputs, criterion)
        sums = add_up(logging_outputs)
        for metric in self.metrics(sums):
            fairseq_metrics.log_scalar(metric.name, metric.value, sums["sample_size"])
        baseline = self.baseline(sums)
        fairseq_metrics.log_scalar("baseline", baseline.value, sums["sample_size"])

    def max_positions(self) -> None:
        return None


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

    def num_tokens(self, index: int) -> int:
        return self.size(index)

    def batch_by_size(
        self, indices, max_tokens=None, max_sentences=None, required_batch_size_multiple=1
    ):
        # The toolkit's default multiple of 8 would cut batches short and drop what is left over.
        return super().batch_by_size(indices, max_tokens, max_sentences, 1)


def require(condition: bool, message: str) -> None:
    """Raise a ValueError that names the option or file, unless the condition holds."""
    if not condition:
        raise ValueError(message)


def split_seed(data_seed: int, split: str, epoch: int) -> Tuple[int, int, int]:
    """Entropy for generated data: training data change with the epoch, the other splits never."""
    return data_seed, SPLITS.index(split), epoch if split == "train" else 0
