"""Criterion `soft_unitary`: the task's own loss plus λ Σ_f ‖W_fᴴ W_f − I‖_F²."""

from dataclasses import dataclass, field
from typing import Any, Dict, List, Tuple

from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.dataclass import FairseqDataclass
from fairseq.logging import metrics
from torch import Tensor


@dataclass
class SoftUnitaryConfig(FairseqDataclass):
    unitary_penalty: float = field(
        default=0.01, metadata={"help": "λ, weight of the soft unitary constraint (0: none)"}
    )


@register_criterion("soft_unitary", dataclass=SoftUnitaryConfig)
class SoftUnitaryCriterion(FairseqCriterion):
    """The soft unitary constraint of KRU on top of what the task minimises.

    The toolkit divides the sum of all gradients by the sum of all sample sizes, over batches and
    workers. The penalty is therefore weighted with the sample size, so that λ weighs it against the
    mean loss whatever the batch, the update frequency or the number of workers.
    """

    def __init__(self, task, unitary_penalty: float) -> None:
        super().__init__(task)
        if not unitary_penalty >= 0:
            raise ValueError(f"--unitary-penalty={unitary_penalty}: must be 0 or more")
        self.weight = unitary_penalty

    def forward(self, model, sample: Dict, reduce: bool = True) -> Tuple[Tensor, int, Dict]:
        output = model(**sample["net_input"])
        loss = self.task.compute_loss(output, sample)
        penalty = model.unitary_penalty()
        total = loss.total + self.weight * loss.count * penalty if self.weight else loss.total
        log = {
            "loss": float(total.detach()),
            "task_loss": float(loss.total.detach()),
            "penalty": float(penalty.detach()) * loss.count,
            "deviation": float(model.unitary_deviation().detach()) * loss.count,
            "ntokens": sample["ntokens"],
            "nsentences": sample["nsentences"],
            "sample_size": loss.count,
            **loss.sums,
        }
        return total, loss.count, log

    @classmethod
    def reduce_metrics(cls, logging_outputs: List[Dict[str, Any]]) -> None:
        """Means over all terms: loss with the penalty and task_loss without (nats, or the task's
        unit), penalty before λ, and the largest deviation of a factor from unitary."""
        count = sum(log.get("sample_size", 0) for log in logging_outputs)
        for name in ("loss", "task_loss", "penalty", "deviation"):
            total = sum(log.get(name, 0) for log in logging_outputs)
            metrics.log_scalar(name, total / max(count, 1), count)

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        return True
