"""Copy memory: repeat ten symbols after T blanks (Hochreiter, Schmidhuber 1997; uRNN section 5.1).

A sequence of T + 2L steps shows L symbols, T − 1 blanks, a signal to answer, and L blanks. The
answer repeats the symbols over the last L steps and is blank before them.
"""

from dataclasses import dataclass, field
from math import log
from typing import Any, Dict, List, Tuple

import numpy as np
import torch
from fairseq.tasks import register_task
from torch import Tensor
from torch.nn import functional as F

from kron_plugin.checks import require, require_positive
from kron_plugin.models.options import ModelSpec

from .base import GeneratedConfig, GeneratedDataset, Loss, Metric, SequenceTask

BLANK = 0


@dataclass
class CopyMemoryConfig(GeneratedConfig):
    delay: int = field(default=100, metadata={"help": "T, blanks between seeing and answering"})
    symbols: int = field(default=8, metadata={"help": "size of the alphabet"})
    copy_length: int = field(default=10, metadata={"help": "L, symbols to remember"})


@register_task("copy_memory", dataclass=CopyMemoryConfig)
class CopyMemoryTask(SequenceTask):
    title = "Copy memory"
    learning_curves = True

    @staticmethod
    def setting(options: Dict[str, Any]) -> str:
        return f"copy memory, T = {options['delay']}"

    def __init__(self, cfg: CopyMemoryConfig, **kwargs) -> None:
        super().__init__(cfg, **kwargs)
        require_positive(cfg, "delay", "symbols", "copy_length")
        # Inputs: blank, the symbols, the signal to answer. Outputs: blank and the symbols.
        self.spec = ModelSpec(
            input_size=cfg.symbols + 2,
            output_size=cfg.symbols + 1,
            tokens=True,
            per_step=True,
            silent_token=BLANK,
        )

    def load_dataset(self, split: str, combine: bool = False, **kwargs) -> None:
        steps = self.cfg.delay + 2 * self.cfg.copy_length
        self.datasets[split] = GeneratedDataset(self.cfg, split, steps, self.make_example)

    def make_example(self, rng: np.random.Generator) -> Tuple[np.ndarray, np.ndarray]:
        """Source and target symbols, shape (T + 2L,) each."""
        length = self.cfg.copy_length
        symbols = rng.integers(1, self.cfg.symbols + 1, length)
        source = self._source(symbols)
        target = np.full_like(source, BLANK)
        target[-length:] = symbols
        return source, target

    def _source(self, symbols: np.ndarray) -> np.ndarray:  # shape: (L,), then (T + 2L,)
        length = self.cfg.copy_length
        source = np.full(self.cfg.delay + 2 * length, BLANK)
        source[:length] = symbols
        source[-length - 1] = self.cfg.symbols + 1
        return source

    def encode(
        self,
        example: Any,  # L symbols, from 1 to --symbols
    ) -> Tensor:  # shape: (T + 2L,)
        """The symbols, the blanks and the signal to answer.

        Raises:
            ValueError: another count of symbols, or unknown ones.
        """
        symbols, cfg = np.asarray(example), self.cfg
        require(
            symbols.shape == (cfg.copy_length,)
            and np.issubdtype(symbols.dtype, np.integer)
            and bool(((symbols >= 1) & (symbols <= cfg.symbols)).all()),
            f"expected {cfg.copy_length} symbols from 1 to {cfg.symbols}, not {example!r}",
        )
        return torch.from_numpy(self._source(symbols))

    def decode(
        self,
        output: Tensor,  # shape: (T + 2L, symbols + 1)
    ) -> List[int]:
        """The symbols that were repeated, 0 for a blank."""
        return output[-self.cfg.copy_length :].argmax(-1).tolist()

    def compute_loss(self, output: Tensor, sample: Dict) -> Loss:
        target = sample["target"]
        # On a CPU, the softmax of many rows of few symbols is three times faster by columns.
        log_probs = F.log_softmax(output.float().movedim(-1, 0), dim=0).flatten(1)
        total = F.nll_loss(log_probs.t(), target.flatten(), reduction="sum")
        length = self.cfg.copy_length
        recalled = output[:, -length:].argmax(-1) == target[:, -length:]
        sums = {"nll": total.detach(), "recalled": recalled.sum()}
        return Loss(total, target.numel(), sums)

    def metrics(self, sums: Dict[str, float]) -> List[Metric]:
        bits = sums["nll"] / log(2) / max(sums["sample_size"], 1)
        recall = 100 * sums["recalled"] / max(sums["nsentences"] * self.cfg.copy_length, 1)
        return [Metric("bits", bits, "bits per position"), Metric("recall", recall, "% of symbols")]

    def baseline(self, sums: Dict[str, float]) -> Metric:
        """Blank until the signal, then a uniform guess: L·log2(symbols) / (T + 2L) bits."""
        cfg = self.cfg
        bits = cfg.copy_length * log(cfg.symbols, 2) / (cfg.delay + 2 * cfg.copy_length)
        return Metric("bits", bits, "bits per position")
