"""Architecture `kru_lm`: a language model, for our `char_lm` and fairseq's own tasks."""

from typing import Any, Dict, Optional, Tuple

from fairseq.models import FairseqLanguageModel, register_model
from fairseq.modules import FairseqDropout
from torch import Tensor, nn

from ..modules.layer import State
from .cells import Cell, build_cell, build_readout
from .incremental import RecurrentDecoder
from .mismatch import ExplainsMismatch
from .options import CellConfig, spec_of


@register_model("kru_lm", dataclass=CellConfig)
class KRULanguageModel(ExplainsMismatch, FairseqLanguageModel):
    """Predicts the next symbol: one-hot symbols, recurrent layers and a readout."""

    decoder: "KRUDecoder"

    @classmethod
    def make(cls, cfg: CellConfig, task) -> "KRULanguageModel":
        spec = spec_of(task, "kru_lm")
        cell = build_cell(cfg, spec)
        readout = build_readout(cfg, cell, spec)
        return cls(KRUDecoder(task.target_dictionary, cell, readout, cfg.dropout))

    @property
    def cell(self) -> Cell:
        """The recurrent layers."""
        return self.decoder.cell

    @property
    def readout(self) -> nn.Module:
        """The linear layer from states to scores."""
        return self.decoder.readout


class KRUDecoder(RecurrentDecoder):
    """Layers and readout. The caller may carry the state, so long texts can come in windows."""

    def __init__(self, dictionary, cell: Cell, readout: nn.Module, dropout: float) -> None:
        super().__init__(dictionary, cell)
        self.readout = readout
        self.dropout = FairseqDropout(dropout, module_name=type(self).__name__)

    def forward(
        self,
        prev_output_tokens: Tensor,  # shape: (B, T)
        *args: Any,
        **kwargs: Any,
    ) -> Tuple[Tensor, Dict[str, Any]]:  # shape: (B, T, symbols)
        """Scores of the next symbol; arguments and extra as for `extract_features`."""
        features, extra = self.extract_features(prev_output_tokens, *args, **kwargs)
        return self.output_layer(features), extra

    def extract_features(
        self,
        prev_output_tokens: Tensor,  # shape: (B, T)
        encoder_out: Any = None,
        incremental_state: Optional[Dict] = None,
        src_lengths: Optional[Tensor] = None,
        state: Optional[State] = None,
    ) -> Tuple[Tensor, Dict[str, Any]]:  # shape: (B, T, output_size of the cell)
        """The input of the readout, and the state after the last step as extra["state"].

        Args:
            incremental_state: if given, only the newest symbol is read.
            src_lengths: not used: padding comes last and nothing looks ahead.
            state: the initial state of the recurrent layers.
        """
        tokens = prev_output_tokens
        if incremental_state is not None:
            tokens, state = tokens[:, -1:], self.saved_state(incremental_state)
        output, state = self.run_cell(tokens.t(), state, incremental_state)
        return self.dropout(output).transpose(0, 1), {"state": state, "attn": None}

    def output_layer(self, features: Tensor, **kwargs: Any) -> Tensor:
        """Scores of all symbols."""
        return self.readout(features)
