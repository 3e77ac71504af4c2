"""Score fairseq's task `language_modeling` like one of our tasks."""

from math import log
from typing import Dict, List

import numpy as np
import torch
from fairseq.tasks.language_modeling import LanguageModelingTask
from torch import Tensor

from ..criterions.soft_unitary import SoftUnitaryCriterion
from ..tasks.base import Metric


class SymbolScores:
    """The metrics and the trivial baseline of a text of symbols, cut as in training.

    Every symbol counts, ends of lines included. `bits` equals the "Loss (base 2)" of
    `fairseq-eval-lm`; if the symbols are characters, it is the bits per character.
    """

    def __init__(self, task: LanguageModelingTask, split: str) -> None:
        self.task, self.split = task, split

    def criterion(self) -> SoftUnitaryCriterion:
        """The cross-entropy alone, for any criterion of the training."""
        return SoftUnitaryCriterion(self.task, unitary_penalty=0.0)

    def metrics(self, sums: Dict[str, float]) -> List[Metric]:
        bits = sums["task_loss"] / log(2) / max(sums["sample_size"], 1)
        return [Metric("bits", bits, "per symbol"), Metric("perplexity", float(np.exp2(bits)), "")]

    def baseline(self, sums: Dict[str, float]) -> Metric:
        """The symbols' frequencies in the training text, without any context."""
        size = len(self.task.target_dictionary)
        self.task.load_dataset("train")
        counts = torch.bincount(self._symbols("train"), minlength=size) + 1.0
        bits = -torch.log2(counts / counts.sum())
        return Metric("bits", float(bits[self._symbols(self.split)].mean()), "per symbol")

    def _symbols(self, split: str) -> Tensor:
        dataset = self.task.dataset(split)
        return torch.cat([dataset[i]["target"] for i in range(len(dataset))])
