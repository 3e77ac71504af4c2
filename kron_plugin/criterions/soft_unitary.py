"""Criterion `soft_unitary`: the task's own loss plus λ Σ_f ‖W_fᴴ W_f − I‖_F²."""

from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional, Tuple

from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.dataclass import FairseqDataclass
from fairseq.logging import metrics
from omegaconf import II
from torch import Tensor
from torch.nn import functional as F

from ..models.cells import penalty_and_deviation, singular_range
from ..tasks.base import Loss, SequenceTask, add_up

MAX_PENALTY = 1e6  # λ; λ times a batch's sample size stays finite in single precision
RANGE = ("singular_min", "singular_max")  # as logged


@dataclass
class SoftUnitaryConfig(FairseqDataclass):
    unitary_penalty: float = field(
        default=0.01, metadata={"help": "λ, weight of the soft unitary constraint (0: none)"}
    )
    sentence_avg: bool = II("optimization.sentence_avg")


@register_criterion("soft_unitary", dataclass=SoftUnitaryConfig)
class SoftUnitaryCriterion(FairseqCriterion):
    """The soft unitary constraint of KRU, added to the loss of the task.

    fairseq divides the sum of all gradients by the sum of all sample sizes, over batches and
    workers. The penalty is therefore multiplied by the sample size. λ then weighs it against the
    mean loss for any batch size, update frequency and number of workers.
    """

    def __init__(self, task, unitary_penalty: float, sentence_avg: bool = False) -> None:
        super().__init__(task)
        if not 0 <= unitary_penalty <= MAX_PENALTY:
            raise ValueError(
                f"--unitary-penalty={unitary_penalty}: must be from 0 to {MAX_PENALTY:.0e}"
            )
        self.weight = unitary_penalty
        self.sentence_avg = sentence_avg
        self.range: Optional[Tuple[float, float]] = None  # of singular values, since training

    def train(self, mode: bool = True) -> "SoftUnitaryCriterion":
        if mode:
            self.range = None
        return super().train(mode)

    def forward(self, model, sample: Dict, reduce: bool = True) -> Tuple[Tensor, int, Dict]:
        output = model(**sample["net_input"])
        loss = self._task_loss(model, output, sample)
        penalty, deviation = penalty_and_deviation(model)
        total = loss.total + self.weight * loss.count * penalty if self.weight else loss.total
        log = {
            "loss": total.detach(),
            "task_loss": loss.total.detach(),
            "penalty": penalty.detach() * loss.count,
            "deviation": deviation * loss.count,
            "ntokens": sample["ntokens"],
            "nsentences": sample["nsentences"],
            "sample_size": loss.count,
            **loss.sums,
        }
        if not self.training:  # once for a validation: it takes longer than a small update
            self.range = self.range or singular_range(model)
            for name, value in zip(RANGE, self.range or (), strict=False):
                log[name] = value * loss.count
        return total, loss.count, log

    def _task_loss(self, model, output, sample: Dict) -> Loss:
        """Our tasks compute their own loss; other tasks have the cross-entropy in nats."""
        if isinstance(self.task, SequenceTask):
            return self.task.compute_loss(output, sample)
        log_probs = model.get_normalized_probs(output, log_probs=True).flatten(0, 1)
        target = model.get_targets(sample, output).flatten()
        total = F.nll_loss(log_probs, target, ignore_index=self.padding_idx, reduction="sum")
        return Loss(total, sample["nsentences" if self.sentence_avg else "ntokens"], {})

    @classmethod
    def reduce_metrics(cls, logging_outputs: List[Dict[str, Any]]) -> None:
        """Means over all terms: loss with the penalty and task_loss without (nats, or the task's
        unit), penalty before λ, the largest deviation of a factor from unitary, and in validation
        the extreme singular values of W."""
        sums = add_up(logging_outputs)
        count = sums.get("sample_size", 0)
        for name in ("loss", "task_loss", "penalty", "deviation", *(RANGE & sums.keys())):
            metrics.log_scalar(name, sums.get(name, 0) / max(count, 1), count)

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        return True
