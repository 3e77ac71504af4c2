"""The encoder of a translation: recurrent layers over the source text."""

from typing import Any, NamedTuple, Tuple

import torch
from fairseq.models import FairseqEncoder
from fairseq.modules import FairseqDropout
from torch import Tensor, nn

from .cells import Cell
from .incremental import reorder


class EncoderOut(NamedTuple):
    """What the decoder sees of a source text.

    outputs: after every symbol of the source, shape (S, B, output_size).
    state: the parts of the last state, shape (layers, B, output_size) each, directions joined.
    padding: true at padding, shape (S, B).
    """

    outputs: Tensor
    state: Tuple[Tensor, ...]
    padding: Tensor


class KRUEncoder(FairseqEncoder):
    """Embeddings, then recurrent layers in one direction or both."""

    def __init__(
        self,
        dictionary,
        embed_tokens: nn.Embedding,
        cell: Cell,
        dropout_in: float,
        dropout_out: float,
    ) -> None:
        super().__init__(dictionary)
        self.embed_tokens = embed_tokens
        self.cell = cell
        self.dropout_in = FairseqDropout(dropout_in, module_name=type(self).__name__)
        self.dropout_out = FairseqDropout(dropout_out, module_name=type(self).__name__)

    def forward(
        self,
        src_tokens: Tensor,  # shape: (B, S), padded on the left or on the right
        src_lengths: Tensor,  # shape: (B,)
        **kwargs: Any,
    ) -> EncoderOut:
        tokens = src_tokens.t()
        padding = tokens.eq(self.dictionary.pad())
        leading = padding.cumprod(0).sum(0)  # the recurrence needs padding at the end
        x = self.dropout_in(self.embed_tokens(_roll(tokens, -leading)))
        outputs, state = self.cell.run(x, lengths=src_lengths)
        joined = tuple(_join_directions(part, self.cell.directions) for part in state)
        # Alignments refer to positions in the source, so the outputs go back to theirs.
        return EncoderOut(self.dropout_out(_roll(outputs, leading)), joined, padding)

    def reorder_encoder_out(self, encoder_out: EncoderOut, new_order: Tensor) -> EncoderOut:
        return EncoderOut(
            encoder_out.outputs.index_select(1, new_order),
            reorder(encoder_out.state, new_order),
            encoder_out.padding.index_select(1, new_order),
        )

    def max_positions(self) -> int:
        return int(1e9)


def _roll(
    x: Tensor,  # shape: (S, B, …)
    shifts: Tensor,  # shape: (B,)
) -> Tensor:
    """Roll each sequence by its own number of steps."""
    steps = torch.arange(len(x), device=x.device).unsqueeze(1)
    return x[(steps - shifts) % len(x), torch.arange(x.shape[1], device=x.device)]


def _join_directions(
    state: Tensor,  # shape: (layers · directions, B, W)
    directions: int,
) -> Tensor:  # shape: (layers, B, directions · W)
    return state.unflatten(0, (-1, directions)).transpose(1, 2).flatten(2)
