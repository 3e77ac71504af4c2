"""A user's own task, for `--user-dir`: after every bit, is the number of ones so far odd?"""

from dataclasses import dataclass, field
from typing import Any, Dict, List, Tuple

import numpy as np
from fairseq.tasks import register_task
from torch import Tensor
from torch.nn import functional as F

from kron_plugin.models.options import ModelSpec
from kron_plugin.tasks.base import GeneratedConfig, GeneratedDataset, Loss, Metric, SequenceTask


@dataclass
class ParityConfig(GeneratedConfig):
    bits: int = field(default=8, metadata={"help": "T, bits in a sequence"})


@register_task("parity", dataclass=ParityConfig)
class ParityTask(SequenceTask):
    spec = ModelSpec(input_size=2, output_size=2, tokens=True, per_step=True)
    title = "Parity of bits"
    larger_is_better = True
    learning_curves = True

    @staticmethod
    def setting(options: Dict[str, Any]) -> str:
        return f"parity, T = {options['bits']}"

    def load_dataset(self, split: str, combine: bool = False, **kwargs) -> None:
        self.datasets[split] = GeneratedDataset(self.cfg, split, self.cfg.bits, self.make_example)

    def make_example(self, rng: np.random.Generator) -> Tuple[np.ndarray, np.ndarray]:
        """Bits and parities, shape (T,) each."""
        bits = rng.integers(2, size=self.cfg.bits)
        return bits, bits.cumsum() % 2

    def compute_loss(self, output: Tensor, sample: Dict) -> Loss:
        target = sample["target"]
        total = F.cross_entropy(output.flatten(0, 1).float(), target.flatten(), reduction="sum")
        correct = float((output.argmax(-1) == target).sum())
        return Loss(total, target.numel(), {"correct": correct})

    def metrics(self, sums: Dict[str, float]) -> List[Metric]:
        share = 100 * sums["correct"] / max(sums["sample_size"], 1)
        return [Metric("correct", share, "% of parities")]

    def baseline(self, sums: Dict[str, float]) -> Metric:
        """A random guess."""
        return Metric("correct", 50.0, "% of parities")
