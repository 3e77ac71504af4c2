"""Architecture `kru`: a recurrent layer and a linear readout, in the shape the task asks for."""

from dataclasses import dataclass, field
from typing import Optional

import torch
from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from fairseq.models import BaseFairseqModel, register_model
from torch import Tensor, nn

from ..modules import KRU
from .cells import BASELINES, BaselineCell, silence
from .spec import ModelSpec


@dataclass
class KRUModelConfig(FairseqDataclass):
    cell: ChoiceEnum(["kru", *BASELINES]) = field(
        default="kru", metadata={"help": "recurrent layer; rnn, lstm and gru are torch's own"}
    )
    hidden_size: int = field(
        default=128, metadata={"help": "N, size of the state (complex numbers for kru)"}
    )
    kron_factors: Optional[str] = field(
        default=None,
        metadata={"help": "factor sizes, as '16,32' or '2x4,4x2' (default: the primes of N)"},
    )
    kron_real: bool = field(
        default=False,
        metadata={
            "help": "real factors instead of complex ones (their orthogonal set falls in two)"
        },
    )
    kron_backend: str = field(
        default="auto", metadata={"help": "backend of the recurrence; auto takes the fastest"}
    )


@register_model("kru", dataclass=KRUModelConfig)
class KRUModel(BaseFairseqModel):
    """o_t = V h_t + c over a recurrent layer; for complex cells h_t enters as [Re h_t ; Im h_t]."""

    def __init__(self, cell: nn.Module, spec: ModelSpec) -> None:
        super().__init__()
        self.cell = cell
        self.per_step = spec.per_step
        self.readout = nn.Linear(cell.output_size, spec.output_size)

    @classmethod
    def build_model(cls, cfg: KRUModelConfig, task) -> "KRUModel":
        spec = getattr(task, "spec", None)
        if spec is None:
            raise ValueError(
                f"--arch kru: the task {type(task).__name__} does not say what model it needs;"
                " use one of copy_memory, music"
            )
        cell = build_cell(cfg, spec.input_size)
        if spec.silent_token is not None:
            silence(cell, spec.silent_token)
        return cls(cell, spec)

    def forward(
        self,
        source: Tensor,  # shape: (B, T, input_size), or (B, T) of integers
        lengths: Optional[Tensor] = None,  # shape: (B,)
    ) -> Tensor:  # shape: (B, T, output_size), or (B, output_size)
        output, h_n = self.cell(source.transpose(0, 1), lengths=lengths)
        if self.per_step:
            return self.readout(output).transpose(0, 1)
        return self.readout(h_n.squeeze(0))

    def unitary_penalty(self) -> Tensor:
        """Σ_f ‖W_fᴴ W_f − I‖_F²; 0 for a cell without factors."""
        return self._of_factors("unitary_penalty")

    def unitary_deviation(self) -> Tensor:
        """max_f ‖W_fᴴ W_f − I‖_F; 0 for a cell without factors."""
        return self._of_factors("unitary_deviation")

    def _of_factors(self, name: str) -> Tensor:
        if isinstance(self.cell, KRU):
            return getattr(self.cell, name)()
        return torch.zeros((), device=self.readout.weight.device)


def build_cell(cfg: KRUModelConfig, input_size: int) -> nn.Module:
    """The recurrent layer that the options ask for."""
    if cfg.hidden_size < 1:
        raise ValueError(f"--hidden-size={cfg.hidden_size}: must be at least 1")
    if cfg.cell == "kru":
        return KRU(
            input_size,
            cfg.hidden_size,
            cfg.kron_factors,
            complex=not cfg.kron_real,
            backend=cfg.kron_backend,
        )
    if cfg.kron_factors or cfg.kron_real:
        raise ValueError(f"--kron-factors and --kron-real: the cell {cfg.cell} has no factors")
    return BaselineCell(str(cfg.cell), input_size, cfg.hidden_size)
