"""Layers upon layers, in one direction or both, called like `torch.nn.LSTM`."""

from typing import Callable, List, Optional, Tuple, Union

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from .layer import KronLayer, State

Sequences = Union[Tensor, PackedSequence]
StackedState = Union[Tensor, State]  # shape: (layers · directions, B, W) each


class RecurrentStack(nn.Module):
    """`num_layers` layers, each in one direction or two; the base of `KRU` and `KRULSTM`.

    `layers` holds them in torch's order: first layer forwards, first layer backwards, second …

    Args:
        make_layer: a layer of one direction for so many input features.
        input_size, num_layers, bidirectional, dropout, batch_first, device, dtype: as for
            `torch.nn.LSTM`.

    Raises:
        ValueError: an argument out of its range.
    """

    def __init__(
        self,
        make_layer: Callable[[int], KronLayer],
        input_size: int,
        num_layers: int,
        bidirectional: bool,
        dropout: float,
        batch_first: bool,
        device: Union[str, torch.device, None] = None,
        dtype: Optional[torch.dtype] = None,
    ) -> None:
        super().__init__()
        if num_layers < 1:
            raise ValueError(f"num_layers={num_layers}: must be at least 1")
        if not 0 <= dropout <= 1:
            raise ValueError(f"dropout={dropout}: must be between 0 and 1")
        self.num_layers = num_layers
        self.bidirectional = bidirectional
        self.directions = 2 if bidirectional else 1
        self.between_layers = nn.Dropout(dropout)
        self.batch_first = batch_first
        self.layers = nn.ModuleList()
        self.input_size = self.output_size = input_size
        for _ in range(num_layers):
            self.layers.extend([make_layer(self.output_size) for _ in range(self.directions)])
            self.output_size = self.directions * self.layers[-1].output_size
        self.hidden_size = self.layers[0].hidden_size
        self.to(device=device, dtype=dtype)

    def forward(
        self,
        x: Sequences,  # shape: (T, B, input_size), or (T, B) of integers below input_size
        state: Optional[StackedState] = None,
        lengths: Optional[Tensor] = None,  # shape: (B,)
        need_output: bool = True,
    ) -> Tuple[Sequences, StackedState]:  # shape: (T, B, output_size)
        """The output of every step, and the last states, as torch's layers return them.

        Args:
            x: features, or symbols that each pick their row of the input weights; packed or not.
            state: where to start; default the layers' own start.
            lengths: steps that count in each sequence; a finished one keeps its last state. The
                other direction begins at the last step that counts.
            need_output: False if the last state is all that is wanted; the output then is empty,
                and less memory is written.

        Raises:
            ValueError: sizes that do not fit.
            IndexError: a symbol that is not below input_size.
            RuntimeError: `check_finite` found a NaN or an infinity; the message names the step, in
                the order in which the layer's direction reads.
        """
        packed = x if isinstance(x, PackedSequence) else None
        if packed is None and x.dim() < 2:
            raise ValueError(
                f"x: has shape {tuple(x.shape)}, expected (T, B, {self.input_size}), or (T, B) of"
                " integers"
            )
        if packed is not None:
            if lengths is not None:
                raise ValueError("lengths: a PackedSequence has its own")
            x, lengths = pad_packed_sequence(packed)
        elif self.batch_first:
            x = x.transpose(0, 1)
        if lengths is not None:
            lengths = torch.as_tensor(lengths, device=x.device)
            lengths = lengths if lengths.numel() else lengths.long()  # those of an empty list
        output, last = self._run(x, self._starts(state), lengths, need_output)
        if need_output and packed is not None:
            output = _pack_like(packed, output, lengths)
        elif need_output and self.batch_first:
            output = output.transpose(0, 1)
        return output, _stacked(last)

    def step(
        self,
        x_t: Tensor,  # shape: (B, input_size), or (B,) of integers below input_size
        state: Optional[StackedState] = None,
    ) -> StackedState:
        """The states after one more input, for streams; the last layer's is the output.

        One call of the recurrence a layer, without dropout; in evaluation and training alike.

        Raises:
            ValueError: the layers read in both directions, which a stream cannot.
        """
        if self.directions == 2:
            raise ValueError("step: a bidirectional layer needs the whole sequence; call it")
        x = x_t.unsqueeze(0)
        last = []
        for layer, start in zip(self.layers, self._starts(state), strict=True):
            last.append(layer(x, start, need_output=False)[1])
            x = last[-1][0].unsqueeze(0)
        return _stacked(last)

    def _starts(self, state: Optional[StackedState]) -> List[Optional[State]]:
        """The start of every layer and direction."""
        if state is None:
            return [None] * len(self.layers)
        parts = tuple(state) if isinstance(state, (tuple, list)) else (state,)
        if len(parts) != self.layers[0].state_parts:
            raise ValueError(
                f"state: has {len(parts)} tensors; {type(self).__name__} has"
                f" {self.layers[0].state_parts}"
            )
        for part in parts:
            if part.dim() != 3 or part.shape[0] != len(self.layers):
                raise ValueError(
                    f"state: has shape {tuple(part.shape)}, expected ({len(self.layers)}, B,"
                    f" {self.layers[0].output_size}), a row for every layer and direction"
                )
        return list(zip(*parts, strict=True))

    def _run(
        self,
        x: Tensor,
        starts: List[Optional[State]],
        lengths: Optional[Tensor],
        need_output: bool,
    ) -> Tuple[Tensor, List[State]]:
        last: List[State] = []
        for first in range(0, len(self.layers), self.directions):
            if first > 0:
                x = self.between_layers(x)
            wanted = need_output or first + self.directions < len(self.layers)
            outputs = []
            for k in range(first, first + self.directions):
                is_backwards = k > first
                source = _reverse(x, lengths) if is_backwards else x
                output, state = self.layers[k](source, starts[k], lengths, wanted)
                last.append(state)
                outputs.append(_reverse(output, lengths) if is_backwards and wanted else output)
            x = torch.cat(outputs, dim=-1) if len(outputs) > 1 else outputs[0]
        return x, last

    @property
    def dropout(self) -> float:
        """The share of outputs that do not reach the next layer in training."""
        return self.between_layers.p

    @dropout.setter
    def dropout(self, share: float) -> None:
        self.between_layers.p = share

    @property
    def factors(self) -> List[nn.Parameter]:
        """What is trained of all factors: smaller steps suit them than the other parameters."""
        return [factor for layer in self.layers for factor in layer.factors]

    def input_weights(self) -> List[Tensor]:
        """U of the first layer, a row for every input; one matrix a direction."""
        return [layer.weight for layer in self.layers[: self.directions]]

    def unitary_penalty(self) -> Tensor:
        """Σ_f ‖W_fᴴ W_f − I‖_F², to be added to the loss with a weight λ; 0 unless `unitary` is
        "soft"."""
        return torch.stack([layer.unitary_penalty() for layer in self.layers]).sum()

    def unitary_deviation(self) -> Tensor:
        """max_f ‖W_fᴴ W_f − I‖_F."""
        return torch.stack([layer.unitary_deviation() for layer in self.layers]).max()

    def recurrent_parameters(self) -> int:
        """How many real numbers describe the recurrent matrices."""
        return sum(layer.recurrent_parameters() for layer in self.layers)

    def extra_repr(self) -> str:
        return f"dropout={self.dropout}, batch_first={self.batch_first}"


def _stacked(last: List[State]) -> StackedState:
    parts = tuple(torch.stack(part) for part in zip(*last, strict=True))
    return parts if len(parts) > 1 else parts[0]


def _reverse(
    x: Tensor,  # shape: (T, B, …)
    lengths: Optional[Tensor],  # shape: (B,)
) -> Tensor:
    """Each sequence backwards within its length; what comes after stays where it is."""
    if lengths is None:
        return x.flip(0)
    steps = torch.arange(x.shape[0], device=x.device).unsqueeze(1)
    mirrored = torch.where(steps < lengths, lengths - 1 - steps, steps)
    return x[mirrored, torch.arange(x.shape[1], device=x.device)]


def _pack_like(packed: PackedSequence, output: Tensor, lengths: Tensor) -> PackedSequence:
    """Pack in the very order of another, as torch's layers do."""
    order = packed.sorted_indices
    if order is not None:
        output, lengths = output.index_select(1, order), lengths.index_select(0, order)
    data = pack_padded_sequence(output, lengths.cpu()).data
    return packed._replace(data=data)
