"""Adding: the sum of two marked numbers in a long sequence (Hochreiter, Schmidhuber 1997; uRNN
section 5.2).

Each of the T steps shows a number, uniform in [0, 1], and a marker. One step in each half of the
sequence is marked. The answer after the last step is the sum of the two marked numbers.
"""

from dataclasses import dataclass, field
from typing import Any, Dict, List, Tuple

import numpy as np
import torch
from fairseq.tasks import register_task
from torch import Tensor
from torch.nn import functional as F

from kron_plugin.checks import require, require_positive
from kron_plugin.models.options import ModelSpec

from .base import GeneratedConfig, GeneratedDataset, Loss, Metric, SequenceTask


@dataclass
class AddingConfig(GeneratedConfig):
    steps: int = field(default=200, metadata={"help": "T, numbers in a sequence"})


@register_task("adding", dataclass=AddingConfig)
class AddingTask(SequenceTask):
    spec = ModelSpec(input_size=2, output_size=1, tokens=False, per_step=False)
    title = "Adding"
    learning_curves = True

    @staticmethod
    def setting(options: Dict[str, Any]) -> str:
        return f"adding, T = {options['steps']}"

    def __init__(self, cfg: AddingConfig, **kwargs) -> None:
        super().__init__(cfg, **kwargs)
        require_positive(cfg, "steps")
        require(cfg.steps >= 2, f"--steps={cfg.steps}: must be at least 2, one for each number")

    def load_dataset(self, split: str, combine: bool = False, **kwargs) -> None:
        self.datasets[split] = GeneratedDataset(self.cfg, split, self.cfg.steps, self.make_example)

    def make_example(self, rng: np.random.Generator) -> Tuple[np.ndarray, np.ndarray]:
        """Source of shape (T, 2), number and marker, and target of shape (1,)."""
        steps = self.cfg.steps
        source = np.zeros((steps, 2), dtype=np.float32)
        source[:, 0] = rng.random(steps)
        marked = [rng.integers(steps // 2), rng.integers(steps // 2, steps)]
        source[marked, 1] = 1
        return source, source[marked, 0].sum(keepdims=True)

    def encode(
        self,
        example: Any,  # numbers from 0 to 1 and their markers, shape (T,) each
    ) -> Tensor:  # shape: (T, 2)
        """A pair of numbers and markers, 1 where a number counts and 0 elsewhere.

        Raises:
            ValueError: there are not as many markers as numbers.
        """
        numbers, markers = (torch.as_tensor(np.asarray(row)).float() for row in example)
        require(
            numbers.dim() == 1 and numbers.shape == markers.shape,
            f"expected as many markers as numbers, not {len(markers)} for {len(numbers)}",
        )
        return torch.stack([numbers, markers], dim=-1)

    def decode(
        self,
        output: Tensor,  # shape: (1,)
    ) -> float:
        """The sum of the marked numbers."""
        return output.item()

    def compute_loss(self, output: Tensor, sample: Dict) -> Loss:
        target = sample["target"].float()
        total = F.mse_loss(output.float(), target, reduction="sum")
        sums = {
            "squared_error": total.detach(),
            "baseline_squared_error": (target - 1).square().sum(),
        }
        return Loss(total, len(target), sums)

    def metrics(self, sums: Dict[str, float]) -> List[Metric]:
        value = sums["squared_error"] / max(sums["sample_size"], 1)
        return [Metric("mse", value, "mean squared error")]

    def baseline(self, sums: Dict[str, float]) -> Metric:
        """A constant answer of 1, the mean: 1/6 in expectation."""
        value = sums["baseline_squared_error"] / max(sums["sample_size"], 1)
        return Metric("mse", value, "mean squared error")
