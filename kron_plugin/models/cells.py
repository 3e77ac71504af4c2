"""The recurrent layers that an architecture can be built on, called alike."""

from typing import Any, Optional, Tuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from ..modules import KRU
from .options import CellConfig, ModelSpec

BASELINES = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}


def build_cell(cfg: CellConfig, spec: ModelSpec) -> nn.Module:
    """The recurrent layer that the options ask for."""
    if cfg.hidden_size < 1:
        raise ValueError(f"--hidden-size={cfg.hidden_size}: must be at least 1")
    if cfg.cell == "kru":
        cell = KRU(
            spec.input_size,
            cfg.hidden_size,
            cfg.kron_factors,
            complex=not cfg.kron_real,
            activation=str(cfg.kron_activation),
            backend=cfg.kron_backend,
        )
    elif cfg.kron_factors or cfg.kron_real:
        raise ValueError(f"--kron-factors and --kron-real: the cell {cfg.cell} has no factors")
    else:
        cell = BaselineCell(str(cfg.cell), spec.input_size, cfg.hidden_size)
    if spec.silent_token is not None:
        with torch.no_grad():
            cell.weight[spec.silent_token] = 0
    return cell


def unitary_penalty(model: nn.Module) -> Tensor:
    """Σ ‖W_fᴴ W_f − I‖_F² over the factors of every KRU in the model, a scalar; 0 without any."""
    penalties = [m.unitary_penalty() for m in model.modules() if isinstance(m, KRU)]
    return torch.stack(penalties).sum() if penalties else next(model.parameters()).new_zeros(())


def unitary_deviation(model: nn.Module) -> Tensor:
    """max ‖W_fᴴ W_f − I‖_F over the factors of every KRU in the model; 0 without any."""
    deviations = [m.unitary_deviation() for m in model.modules() if isinstance(m, KRU)]
    return torch.stack(deviations).max() if deviations else next(model.parameters()).new_zeros(())


class BaselineCell(nn.Module):
    """torch's own RNN, LSTM or GRU behind the call of `kron_plugin.modules.KRU`.

    Integer inputs are taken one-hot, as KRU takes them, so that cells compare like for like.
    """

    def __init__(self, cell: str, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.input_size = input_size
        self.output_size = hidden_size
        self.rnn = BASELINES[cell](input_size, hidden_size)

    @property
    def weight(self) -> Tensor:  # shape: (input_size, gates · hidden_size)
        """What each input contributes, one row an input."""
        return self.rnn.weight_ih_l0.t()

    def forward(
        self,
        x: Tensor,  # shape: (T, B, input_size), or (T, B) of integers
        state: Any = None,  # as torch's layer takes it
        lengths: Optional[Tensor] = None,  # shape: (B,)
        need_output: bool = True,
    ) -> Tuple[Tensor, Any]:  # shape: (T, B, hidden_size); as torch's layer returns it
        """Output and state; the output comes in any case, as torch's layers make it."""
        if not x.is_floating_point():
            x = F.one_hot(x, self.input_size).to(self.rnn.weight_ih_l0.dtype)
        if lengths is None:
            return self.rnn(x, state)
        packed = pack_padded_sequence(x, lengths.cpu(), enforce_sorted=False)
        packed, state = self.rnn(packed, state)
        output, _ = pad_packed_sequence(packed, total_length=x.shape[0])
        return output, state

    def recurrent_parameters(self) -> int:
        """How many numbers the recurrent matrices hold."""
        return self.rnn.weight_hh_l0.numel()
