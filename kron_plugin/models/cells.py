"""The recurrent layers that an architecture can be built on, called alike."""

from typing import Optional, Tuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

BASELINES = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}


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
        lengths: Optional[Tensor] = None,  # shape: (B,)
    ) -> Tuple[Tensor, Tensor]:  # shapes: (T, B, hidden_size), (1, B, hidden_size)
        if not x.is_floating_point():
            x = F.one_hot(x, self.input_size).to(self.rnn.weight_ih_l0.dtype)
        if lengths is None:
            output, state = self.rnn(x)
        else:
            packed = pack_padded_sequence(x, lengths.cpu(), enforce_sorted=False)
            packed, state = self.rnn(packed)
            output, _ = pad_packed_sequence(packed, total_length=x.shape[0])
        return output, state[0] if isinstance(state, tuple) else state

    def recurrent_parameters(self) -> int:
        """How many numbers the recurrent matrices hold."""
        return self.rnn.weight_hh_l0.numel()


@torch.no_grad()
def silence(cell: nn.Module, token: int) -> None:
    """Start with a token that leaves the state alone: its input vector is 0."""
    cell.weight[token] = 0
