"""Copy memory: repeat ten symbols after T blanks (Hochreiter, Schmidhuber 1997; uRNN section 5.1).

A sequence of T + 2L steps shows L symbols, then T − 1 blanks, a signal to answer, and L blanks,
over which the symbols are to be repeated; everywhere else the answer is blank.
"""

from dataclasses import dataclass, field
from math import log
from typing import Dict, List

import numpy as np
import torch
from fairseq.dataclass import FairseqDataclass
from fairseq.tasks import register_task
from torch import Tensor
from torch.nn import functional as F

from kron_plugin.models.spec import ModelSpec

from .base import SPLITS, Loss, Metric, SequenceDataset, SequenceTask, require, split_seed

BLANK = 0


@dataclass
class CopyMemoryConfig(FairseqDataclass):
    delay: int = field(default=100, metadata={"help": "T, blanks between seeing and answering"})
    symbols: int = field(default=8, metadata={"help": "size of the alphabet"})
    copy_length: int = field(default=10, metadata={"help": "L, symbols to remember"})
    train_examples: int = field(
        default=3200, metadata={"help": "new training examples in each epoch; they never repeat"}
    )
    eval_examples: int = field(
        default=1000, metadata={"help": "examples in the fixed valid and test sets, each"}
    )
    data_seed: int = field(default=1, metadata={"help": "seed of the data"})


@register_task("copy_memory", dataclass=CopyMemoryConfig)
class CopyMemoryTask(SequenceTask):
    def __init__(self, cfg: CopyMemoryConfig, **kwargs) -> None:
        super().__init__(cfg, **kwargs)
        for name in ("delay", "symbols", "copy_length", "train_examples", "eval_examples"):
            value = getattr(cfg, name)
            flag = "--" + name.replace("_", "-")
            require(value >= 1, f"{flag}={value}: must be at least 1")
        # Inputs: blank, the symbols, the signal to answer. Outputs: blank and the symbols.
        self.spec = ModelSpec(
            input_size=cfg.symbols + 2,
            output_size=cfg.symbols + 1,
            tokens=True,
            per_step=True,
            silent_token=BLANK,
        )

    def load_dataset(self, split: str, combine: bool = False, **kwargs) -> None:
        require(split in SPLITS, f"split {split!r}: choose one of {', '.join(SPLITS)}")
        self.datasets[split] = CopyMemoryDataset(self.cfg, split)

    def compute_loss(self, output: Tensor, sample: Dict) -> Loss:
        target = sample["target"]
        total = F.cross_entropy(output.flatten(0, 1).float(), target.flatten(), reduction="sum")
        length = self.cfg.copy_length
        recalled = output[:, -length:].argmax(-1) == target[:, -length:]
        sums = {"nll": float(total.detach()), "recalled": float(recalled.sum())}
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


class CopyMemoryDataset(SequenceDataset):
    """Examples made on demand; example i of epoch e is the same in every run and every process."""

    def __init__(self, cfg: CopyMemoryConfig, split: str) -> None:
        super().__init__(shuffle=False)
        self.cfg = cfg
        self.split = split
        self.epoch = 1

    @property
    def can_reuse_epoch_itr_across_epochs(self) -> bool:
        return self.split != "train"

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.cfg.train_examples if self.split == "train" else self.cfg.eval_examples

    def size(self, index: int) -> int:
        return self.cfg.delay + 2 * self.cfg.copy_length

    def __getitem__(self, index: int) -> Dict:
        cfg = self.cfg
        rng = np.random.default_rng((*split_seed(cfg.data_seed, self.split, self.epoch), index))
        symbols = rng.integers(1, cfg.symbols + 1, cfg.copy_length)
        source = np.full(self.size(index), BLANK)
        target = source.copy()
        source[: cfg.copy_length] = symbols
        source[-cfg.copy_length - 1] = cfg.symbols + 1
        target[-cfg.copy_length :] = symbols
        return {"id": index, "source": torch.from_numpy(source), "target": torch.from_numpy(target)}

    def collater(self, samples: List[Dict]) -> Dict:
        if not samples:
            return {}
        source = torch.stack([s["source"] for s in samples])
        return {
            "id": torch.tensor([s["id"] for s in samples]),
            "net_input": {"source": source},
            "target": torch.stack([s["target"] for s in samples]),
            "nsentences": len(samples),
            "ntokens": source.numel(),
        }
