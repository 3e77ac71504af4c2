"""Architecture `kru`: a recurrent layer and a linear readout, in the shape the task asks for."""

from typing import Optional

from fairseq.models import BaseFairseqModel, register_model
from torch import Tensor, nn

from .cells import build_cell
from .options import CellConfig, ModelSpec, spec_of


@register_model("kru", dataclass=CellConfig)
class KRUModel(BaseFairseqModel):
    """o_t = V h_t + c over a recurrent layer; for complex cells h_t enters as [Re h_t ; Im h_t]."""

    def __init__(self, cell: nn.Module, spec: ModelSpec) -> None:
        super().__init__()
        self.cell = cell
        self.per_step = spec.per_step
        self.readout = nn.Linear(cell.output_size, spec.output_size)

    @classmethod
    def build_model(cls, cfg: CellConfig, task) -> "KRUModel":
        spec = spec_of(task, "kru")
        return cls(build_cell(cfg, spec), spec)

    def forward(
        self,
        source: Tensor,  # shape: (B, T, input_size), or (B, T) of integers
        lengths: Optional[Tensor] = None,  # shape: (B,)
    ) -> Tensor:  # shape: (B, T, output_size), or (B, output_size)
        source = source.transpose(0, 1)
        output, state = self.cell(source, lengths=lengths, need_output=self.per_step)
        if self.per_step:
            return self.readout(output).transpose(0, 1)
        last = state[0] if isinstance(state, tuple) else state  # an LSTM has two
        return self.readout(last.squeeze(0))
