"""Architecture `kru`: recurrent layers shaped by the task."""

from dataclasses import fields
from typing import Optional, Union

from fairseq.models import BaseFairseqModel, register_model
from fairseq.modules import FairseqDropout
from torch import Tensor, nn

from ..checks import option
from .cells import Cell, build_cell, build_readout
from .mismatch import ExplainsMismatch
from .options import CellConfig, KRUConfig, is_translation, spec_of
from .translation import KRUTranslationModel


@register_model("kru", dataclass=KRUConfig)
class KRUModel(ExplainsMismatch, BaseFairseqModel):
    """o_t = V h_t + c over recurrent layers. For complex cells --readout selects [Re h_t ; Im h_t],
    |h_t| or both as the input of V."""

    def __init__(self, cell: Cell, readout: nn.Module, per_step: bool, dropout: float) -> None:
        super().__init__()
        self.cell = cell
        self.readout = readout
        self.per_step = per_step
        self.dropout = FairseqDropout(dropout, module_name=type(self).__name__)

    @classmethod
    def make(cls, cfg: KRUConfig, task) -> Union["KRUModel", KRUTranslationModel]:
        """The model of a task; for translation, an encoder and a decoder."""
        if is_translation(task):
            return KRUTranslationModel.make(cfg, task)
        spec = spec_of(task, "kru")
        _check_is_for_one(cfg, type(task).__name__)
        if cfg.bidirectional and spec.per_step:
            raise ValueError(
                f"--bidirectional: {type(task).__name__} asks for an answer at every step, which"
                " must not depend on later ones; leave it out"
            )
        cell = build_cell(cfg, spec, cfg.bidirectional)
        return cls(cell, build_readout(cfg, cell, spec), spec.per_step, cfg.dropout)

    def forward(
        self,
        source: Tensor,  # shape: (B, T, input_size), or (B, T) of integers
        lengths: Optional[Tensor] = None,  # shape: (B,)
    ) -> Tensor:  # shape: (B, T, output_size), or (B, output_size)
        source = source.transpose(0, 1)
        output, state = self.cell.run(source, lengths=lengths, need_output=self.per_step)
        if self.per_step:
            return self.readout(self.dropout(output)).transpose(0, 1)
        top = state[0][-self.cell.directions :].transpose(0, 1).flatten(1)
        return self.readout(self.dropout(top))


def _check_is_for_one(cfg: KRUConfig, task: str) -> None:
    """Raise a ValueError if an option is for an encoder or a decoder: this model has neither."""
    inherited = {f.name for f in fields(CellConfig)} | {"bidirectional"}
    for field in fields(KRUConfig):
        value = getattr(cfg, field.name)
        if field.name not in inherited and value != field.default:
            raise ValueError(
                f"{option(field.name)}={value}: is for the encoder and decoder of a"
                f" translation; the model for {task} is shaped by --hidden-size, --num-layers,"
                " --dropout and --bidirectional"
            )
