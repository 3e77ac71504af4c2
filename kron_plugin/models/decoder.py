"""The decoder of a translation: recurrent layers over the target text that attend to the source."""

from typing import Any, Dict, List, Optional, Tuple

import torch
from fairseq.modules import AdaptiveSoftmax, FairseqDropout
from torch import Tensor, nn
from torch.nn import functional as F

from ..modules.layer import State
from .cells import Cell
from .encoder import EncoderOut
from .incremental import RecurrentDecoder


class KRUTranslationDecoder(RecurrentDecoder):
    """Scores of the next target symbol, given the earlier ones and the source.

    Attention is the global attention of Luong, Pham and Manning without input feeding. Unlike
    fairseq's `lstm`, no step depends on the attention of the step before, so a whole text runs in
    one call of the recurrence.

    Args:
        source_size: features of the encoder's outputs and of its states, directions joined.
        out_dim: features that the scores are computed from.
        cutoff: of an adaptive softmax, or None.
    """

    def __init__(
        self,
        dictionary,
        embed_tokens: nn.Embedding,
        cell: Cell,
        *,
        source_size: int,
        out_dim: int,
        has_attention: bool,
        share_embed: bool,
        cutoff: Optional[List[int]],
        dropout_in: float,
        dropout_out: float,
    ) -> None:
        super().__init__(dictionary, cell)
        size = cell.output_size
        self.embed_tokens = embed_tokens
        self.bridges = nn.ModuleList(_linear(source_size, size) for _ in range(cell.state_parts))
        self.attention = Attention(size, source_size, out_dim) if has_attention else None
        self.project = nn.Identity() if has_attention else _linear(size, out_dim)
        # The initial state comes from the encoder, so the h0 of a KRU gets no gradient, and
        # distributed training refuses trained parameters without one.
        for name, parameter in cell.named_parameters():
            parameter.requires_grad &= not name.endswith(".h0")
        self.dropout_in = FairseqDropout(dropout_in, module_name=type(self).__name__)
        self.dropout_out = FairseqDropout(dropout_out, module_name=type(self).__name__)
        self.adaptive_softmax = None
        if cutoff is not None:
            self.adaptive_softmax = AdaptiveSoftmax(len(dictionary), out_dim, cutoff, dropout_out)
        elif share_embed:
            self.readout = nn.Linear(out_dim, len(dictionary), bias=False)
            self.readout.weight = embed_tokens.weight
        else:
            self.readout = nn.Linear(out_dim, len(dictionary))

    def forward(
        self,
        prev_output_tokens: Tensor,  # shape: (B, T)
        encoder_out: EncoderOut,
        incremental_state: Optional[Dict] = None,
        **kwargs: Any,
    ) -> Tuple[Tensor, Dict[str, Any]]:  # shape: (B, T, symbols)
        """The scores, and the attention weights as extra["attn"], shape (B, T, S) in a list.

        Args:
            incremental_state: if given, only the newest symbol is read.
        """
        x, extra = self.extract_features(prev_output_tokens, encoder_out, incremental_state)
        return self.output_layer(x), extra

    def extract_features(
        self,
        prev_output_tokens: Tensor,  # shape: (B, T)
        encoder_out: EncoderOut,
        incremental_state: Optional[Dict] = None,
        **kwargs: Any,
    ) -> Tuple[Tensor, Dict[str, Any]]:  # shape: (B, T, out_dim)
        """`forward` without the scores."""
        tokens, state = prev_output_tokens, None
        if incremental_state is not None:
            tokens, state = tokens[:, -1:], self.saved_state(incremental_state)
        if state is None:
            state = self._initial_state(encoder_out)
        x = self.dropout_in(self.embed_tokens(tokens.t()))
        output, _ = self.run_cell(x, state, incremental_state)
        if self.attention is None:
            return self.dropout_out(self.project(output)).transpose(0, 1), {"attn": None}
        features, weights = self.attention(output, encoder_out.outputs, encoder_out.padding)
        return self.dropout_out(features), {"attn": [weights]}

    def _initial_state(self, encoder_out: EncoderOut) -> State:
        """The encoder's last state, mapped to the size of the decoder's layers."""
        parts = zip(self.bridges, encoder_out.state, strict=True)
        return tuple(bridge(part) for bridge, part in parts)

    def output_layer(self, features: Tensor, **kwargs: Any) -> Tensor:
        """Scores of all symbols; the features for an adaptive softmax, which scores them itself."""
        return features if self.adaptive_softmax is not None else self.readout(features)


class Attention(nn.Module):
    """Global attention with a bilinear score (Luong, Pham, Manning, EMNLP 2015, "general").

    a_ts = softmax_s(h_tᵀ A e_s); the output is tanh(C [Σ_s a_ts e_s ; h_t]).
    """

    def __init__(self, size: int, source_size: int, out_dim: int) -> None:
        super().__init__()
        self.query = nn.Linear(size, source_size, bias=False)
        self.output = nn.Linear(source_size + size, out_dim, bias=False)

    def forward(
        self,
        h: Tensor,  # shape: (T, B, size)
        source: Tensor,  # shape: (S, B, source_size)
        padding: Tensor,  # shape: (S, B), true where there is no symbol
    ) -> Tuple[Tensor, Tensor]:  # shapes: (B, T, out_dim), (B, T, S)
        h, source = h.transpose(0, 1), source.transpose(0, 1)
        scores = torch.bmm(self.query(h), source.transpose(1, 2)).float()
        scores = scores.masked_fill(padding.t().unsqueeze(1), -torch.inf)
        weights = F.softmax(scores, dim=-1).to(h.dtype)
        context = torch.bmm(weights, source)
        return torch.tanh(self.output(torch.cat([context, h], dim=-1))), weights


def _linear(size_in: int, size_out: int) -> nn.Module:
    """A linear layer, or none if the sizes are equal."""
    return nn.Identity() if size_in == size_out else nn.Linear(size_in, size_out)
