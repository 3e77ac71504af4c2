"""Stacked layers in one direction or both, called like `torch.nn.LSTM`."""

import warnings
from typing import Callable, List, NoReturn, Optional, Tuple, Union, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from .arguments import flag, real, whole
from .layer import KronLayer, State
from .stream import StackedState, Stream, parts_of

Sequences = Union[Tensor, PackedSequence]

DEFAULTS = {  # other values are printed, as by `torch.nn.LSTM`
    "num_layers": 1,
    "bias": True,
    "batch_first": False,
    "dropout": 0.0,
    "bidirectional": False,
}


class RecurrentStack(nn.Module):
    """`num_layers` layers, each in one direction or two; the base of `KRU` and its like.

    `layers` holds them in torch's order: first layer forwards, first layer backwards, second …

    Args:
        make_layer: makes a layer of one direction from its number of input features.
        input_size, num_layers, bidirectional, dropout, batch_first: as for `torch.nn.LSTM`.

    Raises:
        ValueError: an argument is out of range.
        TypeError: an argument has another type.
    """

    title: str  # in reports

    def __init__(
        self,
        make_layer: Callable[[int], KronLayer],
        input_size: int,
        num_layers: int,
        bidirectional: bool,
        dropout: float,
        batch_first: bool,
    ) -> None:
        super().__init__()
        self.num_layers = whole("num_layers", num_layers)
        self.bidirectional = flag("bidirectional", bidirectional)
        self.directions = 2 if bidirectional else 1
        self.between_layers = nn.Dropout(real("dropout", dropout, 1, "between 0 and 1"))
        if dropout and num_layers == 1:
            warnings.warn(
                f"dropout={dropout} has no effect: it acts between layers, and num_layers is 1",
                stacklevel=3,
            )
        self.batch_first = flag("batch_first", batch_first)
        self.layers = cast(List[KronLayer], nn.ModuleList())
        self.input_size = self.output_size = input_size
        for _ in range(num_layers):
            self.layers.extend([make_layer(self.output_size) for _ in range(self.directions)])
            self.output_size = self.directions * self.layers[-1].output_size
        self.hidden_size = self.layers[0].hidden_size

    def forward(
        self,
        x: Sequences,  # shape: (T, B, input_size), or (T, B) of integers below input_size
        state: Optional[StackedState] = None,
        lengths: Optional[Tensor] = None,  # shape: (B,)
        need_output: bool = True,
        *,
        hx: Optional[StackedState] = None,
    ) -> Tuple[Sequences, StackedState]:  # shape: (T, B, output_size)
        """The output of every step, and the last states, as torch's layers return them.

        Args:
            x: features, or symbols that each select a row of the input weights; packed or not.
                A single sequence may lack the axis B; the output and the states then lack it too.
            state: the initial state; default the layers' own.
            lengths: valid steps of each sequence; a finished one keeps its last state. The other
                direction begins at the last valid step.
            need_output: False if only the last state is needed. The output is then empty, and
                less memory is written.
            hx: another name of `state`, from torch's layers.

        Raises:
            ValueError: sizes do not fit.
            IndexError: a symbol is not below input_size.
            RuntimeError: `check_finite` found a NaN or an infinity; the message names the step,
                counted in the reading order of the layer.
        """
        if hx is not None and state is not None:
            raise ValueError("hx: is another name of state; give one of them")
        state = hx if state is None else state
        if isinstance(x, PackedSequence):
            if lengths is not None:
                raise ValueError("lengths: a PackedSequence has its own")
            return self._forward_packed(x, state, need_output)
        alone = self._check_input(x)
        if alone and lengths is not None:
            raise ValueError("lengths: x has no axis B; cut it to its length")
        if alone:
            x = x.unsqueeze(1)
        elif self.batch_first:
            x = x.transpose(0, 1)
        if lengths is not None:
            lengths = torch.as_tensor(lengths, device=x.device)
            lengths = lengths if lengths.numel() else lengths.long()  # an empty list makes floats
        parts = self._parts(state, None if alone else x.shape[1])
        output, last = self.run(x, parts, lengths, need_output)
        if need_output and alone:
            output = output.squeeze(1)
        elif need_output and self.batch_first:
            output = output.transpose(0, 1)
        return output, _public(last, alone)

    def _forward_packed(
        self, packed: PackedSequence, state: Optional[StackedState], need_output: bool
    ) -> Tuple[Sequences, StackedState]:
        x, lengths = pad_packed_sequence(packed)
        self._check_input(x)
        lengths = lengths.to(x.device)
        output, last = self.run(x, self._parts(state, x.shape[1]), lengths, need_output)
        if not need_output:
            return output, _public(last, alone=False)
        return _pack_like(packed, output, lengths), _public(last, alone=False)

    def run(
        self,
        x: Tensor,  # shape: (T, B, input_size), or (T, B) of integers below input_size
        state: Optional[State] = None,  # shape: (layers · directions, B, W) each
        lengths: Optional[Tensor] = None,  # shape: (B,)
        need_output: bool = True,
    ) -> Tuple[Tensor, State]:  # shape: (T, B, output_size)
        """`forward` for models: time first, a batch axis, and the state always a tuple. It does not
        check its arguments."""
        initial = self._by_layer(state)
        last: List[State] = []
        for below in range(0, len(self.layers), self.directions):
            if below > 0:
                x = self.between_layers(x)
            wanted = need_output or below + self.directions < len(self.layers)
            outputs = []
            for k in range(below, below + self.directions):
                is_backwards = k > below
                source = _reverse(x, lengths) if is_backwards else x
                output, end = self.layers[k](source, initial[k], lengths, wanted)
                last.append(end)
                outputs.append(_reverse(output, lengths) if is_backwards and wanted else output)
            x = torch.cat(outputs, dim=-1) if len(outputs) > 1 else outputs[0]
        return x, _by_part(last)

    def step(
        self,
        x_t: Tensor,  # shape: (B, input_size), or (B,) of integers below input_size; B is optional
        state: Optional[StackedState] = None,
    ) -> StackedState:
        """The states after one more input of a stream; the last layer's state is the output.

        It calls the recurrence once for each layer, and has no dropout, even in training. Without
        gradients, `stream` is many times faster.

        Raises:
            ValueError: the layers are bidirectional and need the whole sequence.
        """
        if self.directions == 2:
            raise ValueError("step: a bidirectional layer needs the whole sequence; call it")
        x = x_t.unsqueeze(0)
        alone = self._check_input(x)
        x = x.unsqueeze(1) if alone else x
        initial = self._by_layer(self._parts(state, None if alone else x.shape[1]))
        last: List[State] = []
        for layer, before in zip(self.layers, initial, strict=True):
            last.append(layer(x, before, need_output=False)[1])
            x = last[-1][0].unsqueeze(0)
        return _public(_by_part(last), alone)

    def stream(self, batch_size: int = 1, state: Optional[StackedState] = None) -> Stream:
        """An object that is called with one input after the other and returns the last layer's
        output, many times faster than `step`. It copies the parameters now, and has no gradients.

        Args:
            batch_size: sequences, B.
            state: the initial state, as for `step`; default the layers' own.

        Raises:
            ValueError: the state does not fit, or the layers are bidirectional.
        """
        if self.directions == 2:
            raise ValueError("stream: a bidirectional layer needs the whole sequence; call it")
        return Stream(list(self.layers), type(self).__name__, batch_size, state)

    def _check_input(self, x: Tensor) -> bool:
        """Whether x is a single sequence without the axis B.

        Raises:
            ValueError: x does not have the shape of an input.
        """
        size, axes = self.input_size, "B, T" if self.batch_first else "T, B"
        if not isinstance(x, Tensor):
            raise ValueError(f"x: must be a tensor, not {type(x).__name__}")
        features = x.is_floating_point()
        dims = x.dim() - features
        if dims not in (1, 2) or (features and x.shape[-1] != size):
            raise ValueError(
                f"x: has shape {tuple(x.shape)}, expected ({axes}, {size}) or (T, {size}), or"
                f" ({axes}) or (T,) of integers; its type is {x.dtype}"
            )
        return dims == 1

    def _parts(self, state: Optional[StackedState], batch: Optional[int]) -> Optional[State]:
        """A caller's state as a tuple with the axis B; `batch` is None for a single sequence.

        Raises:
            ValueError: the state does not fit this stack.
        """
        if state is None:
            return None
        rows, width = len(self.layers), self.layers[0].output_size
        expected = (rows, width) if batch is None else (rows, batch, width)
        parts = parts_of(state, self.state_parts, type(self).__name__, expected)
        return tuple(part.unsqueeze(1) for part in parts) if batch is None else parts

    def _by_layer(self, state: Optional[State]) -> List[Optional[State]]:
        """The state of every layer and direction."""
        return [None] * len(self.layers) if state is None else list(zip(*state, strict=True))

    @property
    def state_parts(self) -> int:
        """How many tensors make up a state."""
        return self.layers[0].state_parts

    @property
    def dropout(self) -> float:
        """The probability of dropping an output between layers in training."""
        return self.between_layers.p

    @dropout.setter
    def dropout(self, share: float) -> None:
        self.between_layers.p = share

    @property
    def bias(self) -> bool:
        """Whether the layers have one."""
        return self.layers[0].bias is not None

    @property
    def all_weights(self) -> List[List[nn.Parameter]]:
        """The parameters of every layer and direction."""
        return [list(layer.parameters()) for layer in self.layers]

    def flatten_parameters(self) -> None:
        """Do nothing, as torch's layers do without cuDNN: our kernels take parameters from any
        place in memory."""

    def reset_parameters(self) -> None:
        """Start anew, with other random numbers."""
        for layer in self.layers:
            layer.reset_parameters()

    def __prepare_scriptable__(self) -> NoReturn:
        raise NotImplementedError(
            f"torch.jit.script cannot read {type(self).__name__}; torch.export can"
        )

    @property
    def factors(self) -> List[nn.Parameter]:
        """The trained parameters of all factors; they need smaller steps than the others."""
        return [factor for layer in self.layers for factor in layer.factors]

    def input_weights(self) -> List[Tensor]:
        """U of the first layer, one matrix for each direction, with a row for every input."""
        return [layer.weight for layer in self.layers[: self.directions]]

    def unitary_penalty(self) -> Tensor:
        """Σ_f ‖W_fᴴ W_f − I‖_F². Add it to the loss with a weight λ. 0 unless `unitary` is
        "soft"."""
        return torch.stack([layer.unitary_penalty() for layer in self.layers]).sum()

    def unitary_deviation(self) -> Tensor:
        """max_f ‖W_fᴴ W_f − I‖_F."""
        return torch.stack([layer.unitary_deviation() for layer in self.layers]).max()

    def recurrent_parameters(self) -> int:
        """How many real numbers describe the recurrent matrices."""
        return sum(layer.recurrent_parameters() for layer in self.layers)

    def extra_repr(self) -> str:
        said = [f"{self.input_size}, {self.hidden_size}"]
        for name, default in DEFAULTS.items():
            if getattr(self, name) != default:
                said.append(f"{name}={getattr(self, name)}")
        return ", ".join(said)


def _by_part(states: List[State]) -> State:
    """The states of all layers and directions as one."""
    return tuple(torch.stack(part) for part in zip(*states, strict=True))


def _public(state: State, alone: bool) -> StackedState:
    """A state as torch's layers return it: a lone part as a tensor, without B if `alone`."""
    parts = tuple(part.squeeze(1) for part in state) if alone else state
    return parts if len(parts) > 1 else parts[0]


def _reverse(
    x: Tensor,  # shape: (T, B, …)
    lengths: Optional[Tensor],  # shape: (B,)
) -> Tensor:
    """Reverse each sequence within its length; later steps stay in place."""
    if lengths is None:
        return x.flip(0)
    steps = torch.arange(x.shape[0], device=x.device).unsqueeze(1)
    mirrored = torch.where(steps < lengths, lengths - 1 - steps, steps)
    return x[mirrored, torch.arange(x.shape[1], device=x.device)]


def _pack_like(packed: PackedSequence, output: Tensor, lengths: Tensor) -> PackedSequence:
    """Pack in the order of another packed sequence, as torch's layers do."""
    order = packed.sorted_indices
    if order is not None:
        output, lengths = output.index_select(1, order), lengths.index_select(0, order)
    data = pack_padded_sequence(output, lengths.cpu()).data
    return packed._replace(data=data)
