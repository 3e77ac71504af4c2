"""Language modelling over one long text, by characters or by pieces of words.

Training cuts the text into one contiguous stream for each row of a batch and reads the streams
window by window. The state is carried from each window to the next; back-propagation ends at the
window's edge. Evaluation reads the whole text as one stream, so that its bits per character depend
on the model alone.
"""

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from math import ceil, log
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Union

import torch
from fairseq.data import iterators
from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from fairseq.distributed import utils as distributed
from fairseq.tasks import register_task
from omegaconf import II, MISSING
from torch import Tensor
from torch.nn import functional as F

from kron_plugin.checks import require, require_positive, require_split
from kron_plugin.models.options import ModelSpec
from kron_plugin.modules.layer import State

from .base import Loss, Metric, SequenceDataset, SequenceTask
from .text import VOCAB_TYPES, Tokenizer, load_text, load_tokenizer

IGNORED = -100
EVAL_WINDOW = 4096  # steps; it affects only memory
TEXTS = {"ptb": "Penn Treebank"}  # titles of texts, by folder


@dataclass
class CharLMConfig(FairseqDataclass):
    data: Any = field(
        default=MISSING, metadata={"help": "folder with train.txt, valid.txt and test.txt"}
    )
    vocab_type: ChoiceEnum(VOCAB_TYPES) = field(
        default="char", metadata={"help": "what the SentencePiece tokenizer cuts text into"}
    )
    vocab_size: Optional[int] = field(
        default=None, metadata={"help": "symbols, for unigram and bpe"}
    )
    tokens_per_sample: int = field(
        default=150, metadata={"help": "steps of a training window, across which gradients flow"}
    )
    batch_size: Optional[int] = II("dataset.batch_size")


@register_task("char_lm", dataclass=CharLMConfig)
class CharLMTask(SequenceTask):
    title = "Text by characters"

    @staticmethod
    def setting(options: Dict[str, Any]) -> str:
        return f"{TEXTS.get(options['data'], options['data'])} characters"

    def __init__(self, cfg: CharLMConfig, **kwargs) -> None:
        super().__init__(cfg, **kwargs)
        require_positive(cfg, "tokens_per_sample")
        self.cfg.vocab_type = str(cfg.vocab_type)  # fairseq's choices cannot be pickled
        self._tokenizer: Optional[Tokenizer] = None
        self.carried: Dict[str, Optional[State]] = {}
        self.gathered: Optional[State] = None

    @cached_property
    def texts(self) -> Dict[str, str]:
        """The text of every split."""
        return load_text(Path(self.cfg.data))

    def read_data(self) -> None:
        _ = self.tokenizer

    @property
    def tokenizer(self) -> Tokenizer:
        """That of the checkpoint, if one was loaded; else that of the data."""
        if self._tokenizer is None:
            cfg = self.cfg
            self._tokenizer = load_tokenizer(
                Path(cfg.data), self.texts, cfg.vocab_type, cfg.vocab_size
            )
        return self._tokenizer

    @property
    def spec(self) -> ModelSpec:
        size = self.tokenizer.vocab_size()
        return ModelSpec(size, size, tokens=True, per_step=True, arch="kru_lm")

    @cached_property
    def vocabulary(self) -> str:
        """A hash of the symbols."""
        return hashlib.sha256("\0".join(self.tokenizer.pieces()).encode()).hexdigest()

    @cached_property
    def piece_characters(self) -> Tensor:  # shape: (symbols,)
        """How many characters each symbol stands for."""
        return torch.tensor([len(piece) for piece in self.tokenizer.pieces()])

    @cached_property
    def piece_nll(self) -> Tensor:  # shape: (symbols,)
        """−log of each symbol's frequency in the training text."""
        counts = torch.bincount(self._tokens("train"), minlength=self.spec.output_size) + 1.0
        return -torch.log(counts / counts.sum())

    def encode(
        self,
        example: str,
    ) -> Tensor:  # shape: (T,)
        """The symbols of a text.

        Raises:
            ValueError: the text has characters that the training text has not.
        """
        unknown = self.tokenizer.unknown(example)
        require(not unknown, f"has characters that the training text has not: {unknown}")
        return torch.tensor(self.tokenizer.encode(example), dtype=torch.int64)

    def decode(
        self,
        output: Tensor,  # shape: (T, symbols)
    ) -> str:
        """The likeliest next symbol of every step, as one text."""
        return self.tokenizer.decode(self.without_unknown(output).argmax(-1).tolist())

    def without_unknown(self, scores: Tensor) -> Tensor:  # shape: (…, symbols)
        """Scores with which the unknown symbol, which no text has, is never chosen."""
        unknown = torch.tensor([self.tokenizer.unk_id()], device=scores.device)
        return scores.index_fill(-1, unknown, -torch.inf)

    def _tokens(self, split: str) -> Tensor:
        text = self.texts[split]
        try:
            return self.encode(text)
        except ValueError as error:
            raise ValueError(f"{self.cfg.data}: {split}.txt {error}") from error

    def load_dataset(
        self, split: str, combine: bool = False, whole: bool = False, **kwargs
    ) -> None:
        """`whole`: read the training text as one stream, to score it like the other splits."""
        require_split(split)
        tokens, end_of_line = self._tokens(split), self.tokenizer.piece_to_id("\n")
        workers = distributed.get_data_parallel_world_size()
        rank = distributed.get_data_parallel_rank() if workers > 1 else 0
        if split == "train" and not whole:
            require(bool(self.cfg.batch_size), "--batch-size: char_lm needs the number of streams")
            rows, window = self.cfg.batch_size, self.cfg.tokens_per_sample
            streams, own = rows * workers, slice(rank * rows, (rank + 1) * rows)
        else:
            rows, window, streams, own = 1, EVAL_WINDOW, 1, slice(0, 1)
        require(
            len(tokens) >= streams,
            f"--batch-size={rows}: more streams than the {len(tokens)} symbols of {split}.txt",
        )
        dataset = StreamDataset(tokens, end_of_line, split, streams, window, own)
        if split != "train" and rank > 0:
            dataset.target.fill_(IGNORED)  # every worker reads the text; only the first counts
        self.datasets[split] = dataset

    def get_batch_iterator(self, dataset, epoch: int = 1, num_workers: int = 0, **kwargs):
        """The windows in order; an item of the dataset is a whole batch."""
        return iterators.EpochBatchIterator(
            dataset=dataset,
            collate_fn=dataset.collater,
            batch_sampler=[[i] for i in range(len(dataset))],
            num_workers=num_workers,
            epoch=epoch,
            disable_shuffling=True,
        )

    def train_step(self, sample, model, criterion, optimizer, update_num, ignore_grad=False):
        self._carry(sample)
        return super().train_step(sample, model, criterion, optimizer, update_num, ignore_grad)

    def valid_step(self, sample, model, criterion):
        self._carry(sample)
        return super().valid_step(sample, model, criterion)

    def _carry(self, sample: Dict) -> None:
        """Start a window from the last state of the previous one; the first starts afresh."""
        state = None if sample["is_first"] else self.carried.get(sample["split"])
        require(
            state is not None or sample["is_first"],
            "--batch-size, --tokens-per-sample: the checkpoint is from amid an epoch, with other"
            " streams or windows or on another number of workers; keep these as they were, or begin"
            " an epoch with --reset-dataloader",
        )
        sample["net_input"]["state"] = _map(
            state, lambda t: t.to(sample["target"].device, non_blocking=True)
        )

    def compute_loss(self, output: Any, sample: Dict) -> Loss:
        logits, extra = output
        self.carried[sample["split"]] = _map(extra["state"], Tensor.detach)
        logits, target = logits.flatten(0, 1).float(), sample["target"].flatten()
        total = F.cross_entropy(logits, target, reduction="sum", ignore_index=IGNORED)
        counted = target[target != IGNORED].cpu()
        sums: Dict[str, Union[float, Tensor]] = {
            "nll_sum": total.detach(),
            "baseline_sum": float(self.piece_nll[counted].sum()),
            "characters": float(self.piece_characters[counted].sum()),
        }
        return Loss(total, len(counted), sums)

    def metrics(self, sums: Dict[str, float]) -> List[Metric]:
        characters = max(sums["characters"], 1)
        return [Metric("bpc", sums["nll_sum"] / log(2) / characters, "bits per character")]

    def baseline(self, sums: Dict[str, float]) -> Metric:
        """The symbols' frequencies in the training text, without any context."""
        value = sums["baseline_sum"] / log(2) / max(sums["characters"], 1)
        return Metric("bpc", value, "bits per character")

    def gather_states(self) -> None:
        """Gather the states of all workers' streams before a checkpoint is written."""
        state = _map(self.carried.get("train"), Tensor.cpu)
        states = [state]
        workers = distributed.get_data_parallel_world_size()
        if workers > 1:
            states = [None] * workers
            torch.distributed.all_gather_object(states, state)
        self.gathered = state and tuple(torch.cat(part, 1) for part in zip(*states, strict=True))

    def state_dict(self) -> Dict[str, Any]:
        model = self.tokenizer.serialized_model_proto()
        tokenizer = torch.frombuffer(bytearray(model), dtype=torch.uint8)
        return {**super().state_dict(), "vocabulary": self.vocabulary, "tokenizer": tokenizer}

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        if self._tokenizer is None and "tokenizer" in state:
            self._tokenizer = Tokenizer(state["tokenizer"].numpy().tobytes())
        self._require_vocabulary(state)
        super().load_state_dict(state)

    def _require_vocabulary(self, state: Dict[str, Any]) -> None:
        """Raise a ValueError if a checkpoint has other symbols; its parameters might still fit."""
        require(
            state.get("vocabulary", self.vocabulary) == self.vocabulary,
            f"{self.cfg.data}: the text has changed since the checkpoint was trained, and so has"
            " the vocabulary; restore the text, or put the old tokenizer beside it",
        )

    def get_checkpoint_dict(self) -> Dict[str, Any]:
        """The carried training state; a run resumed within an epoch needs it to go on exactly."""
        window = self.cfg.tokens_per_sample
        carried = {"tokens_per_sample": window, "carried": self.gathered}
        return {type(self).__name__: {**carried, "vocabulary": self.vocabulary}}

    def set_checkpoint_dict(self, state: Dict[str, Any]) -> None:
        """Take this worker's rows of the carried state, if streams and windows are the same."""
        self._require_vocabulary(state)
        dataset, carried = self.dataset("train"), state["carried"]
        if isinstance(carried, Tensor):  # older checkpoints store a state of one part so
            carried = (carried,)
        fits = (
            carried is not None
            and carried[0].shape[1] == dataset.streams
            and state["tokens_per_sample"] == dataset.window
        )
        self.carried["train"] = _map(carried, lambda t: t[:, dataset.rows]) if fits else None


def _map(state: Optional[State], function: Callable[[Tensor], Tensor]) -> Optional[State]:
    """Apply a function to every part of a state; None stays None."""
    return state and tuple(function(part) for part in state)


class StreamDataset(SequenceDataset):
    """A text as parallel streams; item i is window i of all of them, a whole batch.

    Every symbol is predicted exactly once: the first from an end of line, the others from all the
    symbols before them in their stream. `IGNORED` pads the streams to equal length.
    """

    def __init__(
        self,
        tokens: Tensor,  # shape: (symbols,)
        end_of_line: int,
        split: str,
        streams: int,
        window: int,
        rows: slice,
    ) -> None:
        super().__init__(shuffle=False)
        self.split, self.streams, self.window, self.rows = split, streams, window, rows
        self.steps = ceil(len(tokens) / streams)
        missing = self.steps * streams - len(tokens)
        before = torch.cat([tokens.new_tensor([end_of_line]), tokens[:-1]])
        self.source = F.pad(before, (0, missing), value=end_of_line).view(streams, -1)[rows]
        self.target = F.pad(tokens, (0, missing), value=IGNORED).view(streams, -1)[rows]

    def __len__(self) -> int:
        return ceil(self.steps / self.window)

    def size(self, index: int) -> int:
        return self.source[:, index * self.window : (index + 1) * self.window].numel()

    def __getitem__(self, index: int) -> Dict:
        steps = slice(index * self.window, (index + 1) * self.window)
        target = self.target[:, steps]
        return {
            "split": self.split,
            "is_first": index == 0,
            "net_input": {"src_tokens": self.source[:, steps].contiguous()},
            "target": target.contiguous(),
            "nsentences": int((target != IGNORED).any(1).sum()),
            "ntokens": int((target != IGNORED).sum()),
        }

    def batch_by_size(self, indices, *args, **kwargs) -> List[List[int]]:
        return [[int(i)] for i in indices]

    def collate(self, samples: List[Dict]) -> Dict:
        return samples[0]
