"""Polyphonic music: which keys sound next? (Boulanger-Lewandowski, Bengio, Vincent 2012)

The model predicts the keys of the next time step from all steps before it, with a probability for
each key. The metric is the negative log-likelihood in nats per predicted time step, summed over the
88 keys. The first step of a sequence is given, not predicted.
"""

import logging
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Dict, List, Optional

import numpy as np
import torch
from fairseq.dataclass import FairseqDataclass
from fairseq.tasks import register_task
from omegaconf import MISSING
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from kron_plugin.checks import require, require_positive, require_seed, require_split
from kron_plugin.models.options import ModelSpec

from .base import Loss, Metric, SequenceDataset, SequenceTask
from .midi import read_midi
from .midi_set import MIDI_SEED, MIDI_SPLIT, STEPS_PER_BEAT, has_midi, load_midi
from .rolls import KEYS, Rolls, load_rolls

logger = logging.getLogger(__name__)


@dataclass
class MusicConfig(FairseqDataclass):
    data: Any = field(
        default=MISSING,
        metadata={"help": "folder with .pickle files of piano rolls, or MIDI files"},
    )
    music_set: Optional[str] = field(
        default=None,
        metadata={"help": "which .pickle, such as 'JSB Chorales' (default: the only one)"},
    )
    segment_steps: Optional[int] = field(
        default=None,
        metadata={
            "help": "training: cut sequences into segments of at most this many predicted steps;"
            " each begins with the initial state (default: whole sequences)"
        },
    )
    steps_per_beat: int = field(
        default=STEPS_PER_BEAT, metadata={"help": "MIDI files: time steps in a quarter note"}
    )
    midi_split: List[float] = field(
        default_factory=lambda: list(MIDI_SPLIT),
        metadata={
            "help": "MIDI files without folders train, valid and test: the share of each split,"
            " such as 0.7,0.15,0.15"
        },
    )
    midi_seed: int = field(default=MIDI_SEED, metadata={"help": "seed of that split"})


@register_task("music", dataclass=MusicConfig)
class MusicTask(SequenceTask):
    spec = ModelSpec(input_size=KEYS, output_size=KEYS, tokens=False, per_step=True)
    title = "Polyphonic music"

    @staticmethod
    def setting(options: Dict[str, Any]) -> str:
        return options.get("music_set", options["data"])

    def __init__(self, cfg: MusicConfig, **kwargs) -> None:
        super().__init__(cfg, **kwargs)
        require_seed(cfg, "midi_seed")
        if cfg.segment_steps is not None:
            require_positive(cfg, "segment_steps")

    @cached_property
    def rolls(self) -> Rolls:
        """The piano rolls of each split."""
        return _load(self.cfg)

    @cached_property
    def key_probability(self) -> Tensor:  # shape: (88,)
        """How often each key sounds in the training set, strictly between 0 and 1."""
        steps = np.concatenate(self.rolls["train"])
        return torch.from_numpy((steps.sum(0) + 1.0) / (len(steps) + 2.0))

    def encode(
        self,
        example: Any,  # a MIDI file, or a piano roll of shape (T, 88)
    ) -> Tensor:  # shape: (T, 88)
        """Which keys sound at each step.

        Raises:
            ValueError: the file cannot be read, or the roll has another shape or other numbers.
        """
        if isinstance(example, (str, Path)):
            example, remark = read_midi(Path(example), self.cfg.steps_per_beat)
            if remark:
                logger.warning("%s", remark)
        roll = torch.as_tensor(np.asarray(example)).float()
        require(
            roll.dim() == 2 and roll.shape[1] == KEYS,
            f"a piano roll has shape (T, {KEYS}), not {tuple(roll.shape)}",
        )
        require(bool(((roll == 0) | (roll == 1)).all()), "a piano roll holds 0 and 1 alone")
        return roll

    def decode(
        self,
        output: Tensor,  # shape: (T, 88)
    ) -> np.ndarray:  # shape: (T, 88)
        """For every step, the keys that are more likely than not to sound at the next one."""
        return (output > 0).numpy(force=True)

    def read_data(self) -> None:
        _ = self.rolls

    def load_dataset(
        self, split: str, combine: bool = False, whole: bool = False, **kwargs
    ) -> None:
        """`whole`: keep the training set uncut and in order, to score it like the other splits."""
        require_split(split)
        training = split == "train" and not whole
        rolls = self.rolls[split]
        require(
            any(len(roll) > 1 for roll in rolls),
            f"{self.cfg.data}: the sequences of the split {split!r} have one time step each, which"
            " leaves nothing to predict",
        )
        if training and self.cfg.segment_steps is not None:
            rolls = [part for roll in rolls for part in segments(roll, self.cfg.segment_steps)]
        self.datasets[split] = MusicDataset(rolls, shuffle=training)

    def compute_loss(self, output: Tensor, sample: Dict) -> Loss:
        valid = sample["valid"]
        logits, target = output[valid].float(), sample["target"][valid].float()
        total = F.binary_cross_entropy_with_logits(logits, target, reduction="sum")
        # The baseline's loss is linear in the target: the mean of all steps has the same sum.
        guess, mean = self.key_probability.to(target), target.mean(0)
        said, sounds = logits > 0, target > 0
        sums = {
            "nll_sum": total.detach(),
            "baseline_sum": len(target) * F.binary_cross_entropy(guess, mean, reduction="sum"),
            "hits": (said & sounds).sum(),
            "said_or_sounds": (said | sounds).sum(),
        }
        return Loss(total, len(target), sums)

    def metrics(self, sums: Dict[str, float]) -> List[Metric]:
        nll = sums["nll_sum"] / max(sums["sample_size"], 1)
        accuracy = 100 * sums["hits"] / max(sums["said_or_sounds"], 1)
        return [
            Metric("nll", nll, "nats per time step"),
            Metric("frame_accuracy", accuracy, "% of keys said or sounding"),
        ]

    def baseline(self, sums: Dict[str, float]) -> Metric:
        """The training set's key frequencies at every step."""
        value = sums["baseline_sum"] / max(sums["sample_size"], 1)
        return Metric("nll", value, "nats per time step")


def _load(cfg: MusicConfig) -> Rolls:
    folder = Path(cfg.data)
    pickles = cfg.music_set is not None or any(folder.glob("*.pickle"))
    if pickles or not has_midi(folder):
        return load_rolls(folder, cfg.music_set)
    return load_midi(folder, cfg.steps_per_beat, cfg.midi_split, cfg.midi_seed)


def segments(
    roll: np.ndarray,  # shape: (T, 88)
    steps: int,
) -> List[np.ndarray]:  # shape: (up to steps + 1, 88) each
    """Pieces of a roll that predict each of its steps once, except the first. A piece begins with
    the last step that the previous piece predicts."""
    return [roll[start : start + steps + 1] for start in range(0, len(roll) - 1, steps)]


class MusicDataset(SequenceDataset):
    """Piano rolls; each step is the target of the previous one. Batches are padded at the end."""

    def __init__(self, rolls: List[np.ndarray], shuffle: bool) -> None:
        super().__init__(shuffle)
        # A roll of one step has nothing to predict.
        self.rolls = [roll for roll in rolls if len(roll) > 1]

    def __len__(self) -> int:
        return len(self.rolls)

    def size(self, index: int) -> int:
        return len(self.rolls[index]) - 1

    def __getitem__(self, index: int) -> Dict:
        return {"id": index, "roll": torch.from_numpy(self.rolls[index]).float()}

    def collate(self, samples: List[Dict]) -> Dict:
        lengths = torch.tensor([len(s["roll"]) - 1 for s in samples])
        roll = pad_sequence([s["roll"] for s in samples], batch_first=True)
        return {
            "id": torch.tensor([s["id"] for s in samples]),
            "net_input": {"source": roll[:, :-1], "lengths": lengths},
            "target": roll[:, 1:],
            "valid": torch.arange(int(lengths.max())) < lengths.unsqueeze(1),
            "nsentences": len(samples),
            "ntokens": int(lengths.sum()),
        }
