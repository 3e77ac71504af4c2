"""torch's own recurrent layers, to compare with."""

from copy import deepcopy
from typing import List, Optional, Tuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from ..modules.arguments import whole
from ..modules.gated import chrono_
from ..modules.layer import State
from ..modules.stream import StackedState, check_step, parts_of

BASELINES = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}


class BaselineCell(nn.Module):
    """torch's own RNN, LSTM or GRU with the `run` of `kron_plugin.modules.KRU`.

    Integer inputs are one-hot, as for KRU, so cells are compared like for like.
    """

    def __init__(
        self,
        cell: str,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        dropout: float = 0.0,
        bidirectional: bool = False,
        chrono: Optional[int] = None,
    ) -> None:
        super().__init__()
        self.input_size = input_size
        self.directions = 2 if bidirectional else 1
        self.output_size = self.directions * hidden_size
        self.state_parts = 2 if cell == "lstm" else 1
        self.rnn = BASELINES[cell](
            input_size,
            hidden_size,
            num_layers,
            dropout=dropout if num_layers > 1 else 0.0,  # torch warns of one without effect
            bidirectional=bidirectional,
        )
        if chrono is not None:
            self._start_with_memories(chrono)

    @torch.no_grad()
    def _start_with_memories(self, steps: int) -> None:
        """As `KRULSTM`. torch adds two biases; a GRU's second gate both forgets and inputs."""
        for name, bias in self.rnn.named_parameters():
            size = self.rnn.hidden_size
            if name.startswith("bias_hh"):
                bias[: 2 * size] = 0
            elif name.startswith("bias_ih"):
                chrono_(bias[size : 2 * size], steps)
                if isinstance(self.rnn, nn.LSTM):
                    bias[:size] = -bias[size : 2 * size]

    def input_weights(self) -> List[Tensor]:  # shape: (input_size, gates · hidden_size) each
        """The input weights, one matrix for each direction, with a row for every input."""
        names = ("weight_ih_l0", "weight_ih_l0_reverse")[: self.directions]
        return [getattr(self.rnn, name).t() for name in names]

    def run(
        self,
        x: Tensor,  # shape: (T, B, input_size), or (T, B) of integers
        state: Optional[State] = None,  # shape: (layers · directions, B, hidden_size) each
        lengths: Optional[Tensor] = None,  # shape: (B,)
        need_output: bool = True,
    ) -> Tuple[Tensor, State]:  # shape: (T, B, output_size)
        """The output and the last state; torch's layers always make the output."""
        if not x.is_floating_point():
            x = F.one_hot(x.long(), self.input_size).to(self.rnn.weight_ih_l0.dtype)
        is_one = self.state_parts == 1
        initial = state[0] if state is not None and is_one else state
        if lengths is None:
            output, last = self.rnn(x, initial)
        else:
            packed = pack_padded_sequence(x, lengths.cpu(), enforce_sorted=False)
            packed, last = self.rnn(packed, initial)
            output, _ = pad_packed_sequence(packed, total_length=x.shape[0])
        return output, (last,) if is_one else last

    def recurrent_parameters(self) -> int:
        """How many numbers the recurrent matrices hold."""
        return sum(p.numel() for n, p in self.rnn.named_parameters() if "weight_hh" in n)

    def stream(self, batch_size: int = 1) -> "BaselineStream":
        """As `RecurrentStack.stream`, without its speed.

        Raises:
            ValueError: the layers are bidirectional.
        """
        if self.directions == 2:
            raise ValueError("stream: a bidirectional layer needs the whole sequence; call it")
        return BaselineStream(self, batch_size)


class BaselineStream:
    """As `kron_plugin.modules.stream.Stream`, for torch's own layers."""

    def __init__(self, cell: BaselineCell, batch_size: int) -> None:
        self.cell, self.batch_size = deepcopy(cell).eval(), whole("batch_size", batch_size)
        self._state: State = ()
        self.reset()

    @property
    def state(self) -> StackedState:  # shape: (layers, B, hidden_size) each
        """A copy of the state. May be set."""
        parts = tuple(part.clone() for part in self._state)
        return parts if len(parts) > 1 else parts[0]

    @state.setter
    def state(self, state: StackedState) -> None:
        parts = parts_of(state, len(self._state), "the layer", tuple(self._state[0].shape))
        self._state = tuple(part.detach().clone() for part in parts)

    @torch.no_grad()
    def __call__(
        self,
        x_t: Tensor,  # shape: (B, input_size), or (B,) of integers; without B if it is 1
    ) -> Tensor:  # shape: (B, output_size), without B as x_t
        """The output after one more input.

        Raises:
            ValueError: x_t does not fit; the state is as before.
        """
        check_step(x_t, self.batch_size, self.cell.input_size)
        tail = (self.cell.input_size,) if x_t.is_floating_point() else ()
        output, self._state = self.cell.run(x_t.reshape(1, self.batch_size, *tail), self._state)
        return output[0] if x_t.dim() > len(tail) else output[0, 0]

    def reset(self) -> None:
        """Begin a new sequence."""
        rnn = self.cell.rnn
        zeros = rnn.weight_hh_l0.new_zeros(rnn.num_layers, self.batch_size, rnn.hidden_size)
        self._state = (zeros,) * self.cell.state_parts
