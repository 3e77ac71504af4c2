"""A stream: a stack of layers that reads one step a call, for use and not for training."""

from typing import Dict, List, NoReturn, Optional, Tuple, Union

import torch
from torch import Tensor

from ..ops.backends import compute_type
from .arguments import whole
from .layer import KronLayer, State

StackedState = Union[Tensor, State]  # shape: (layers · directions, B, W) each; without B for one


def parts_of(state: StackedState, count: int, owner: str, *shapes: Tuple[int, ...]) -> State:
    """A caller's state as a tuple.

    Raises:
        ValueError: it is not `count` tensors of one of the shapes.
    """
    parts = tuple(state) if isinstance(state, (tuple, list)) else (state,)
    if len(parts) != count:
        raise ValueError(f"state: has {len(parts)} tensors; {owner} has {count}")
    for part in parts:
        if not isinstance(part, Tensor):
            raise ValueError(f"state: must be a tensor or several, not {type(part).__name__}")
        if tuple(part.shape) not in shapes:
            raise ValueError(
                f"state: has shape {tuple(part.shape)}, expected {shapes[0]}, a row for every layer"
                " and direction"
            )
    return parts


def check_step(x: Tensor, batch: int, input_size: int) -> None:
    """Raise a ValueError unless x is one input for each of a batch of sequences."""
    if not isinstance(x, Tensor):
        raise ValueError(f"x_t: must be a tensor, not {type(x).__name__}")
    tail = (input_size,) if x.is_floating_point() else ()
    fits = tuple(x.shape) == (batch, *tail)
    fits = fits or (batch == 1 and tuple(x.shape) == tail)
    if not fits or x.is_complex() or x.dtype == torch.bool:
        without = f", or without the axis of {batch}" if batch == 1 else ""
        raise ValueError(
            f"x_t: has shape {tuple(x.shape)} and type {x.dtype}, expected ({batch}, {input_size})"
            f" or ({batch},) of integers{without}"
        )


class Stream:
    """What `RecurrentStack.stream` returns. `h = stream(x_t)` is the output after one more input.

    ::

        stream = kru.stream()
        for x_t in sensor:                            # (input_size,) each, or (1, input_size)
            h = stream(x_t)                           # (output_size,), or (1, output_size)

    It keeps the state, and copies of the parameters from when it was made: it does not follow later
    training, not after `reset` either. It has no gradients and no dropout. Outputs are those of the
    stack called with the whole sequence, to the last digits. Half precision is computed in float32.

    `copy.copy` and `copy.deepcopy` do as `fork`. It cannot be pickled; keep `state` instead.
    """

    @torch.no_grad()
    def __init__(
        self,
        layers: List[KronLayer],
        name: str,  # of the stack, for messages
        batch_size: int,
        state: Optional[StackedState],
    ) -> None:
        self._batch = whole("batch_size", batch_size)
        first = layers[0]
        self._name, self._input_size = name, first.input_size
        self._dtype, self._device = first.weight.dtype, first.weight.device
        self._check_finite = first.check_finite
        self._is_plain = self._dtype == compute_type(self._dtype) and not self._check_finite
        starts = [torch.stack(layer.initial_state(self._batch)) for layer in layers]
        self._initial = self._computed(torch.stack(starts))
        begin = self._initial if state is None else self._state(state)
        weights = [layer.copied_weights() for layer in layers]
        settings = (first.backend, first.activation)
        self._engine = first.recurrence.stream(weights, begin, *settings)
        self._read_tokens(False)

    def __call__(
        self,
        x_t: Tensor,  # shape: (B, input_size), or (B,) of integers; without B if it is 1
    ) -> Tensor:  # shape: (B, output_size), without B as x_t
        """The output after one more input.

        Raises:
            ValueError: x_t does not fit; the state is as before.
            IndexError: a symbol is not below input_size; the state is as before.
            RuntimeError: `check_finite` found a NaN or an infinity in the state.
        """
        if x_t.__class__ is Tensor:
            like = self._results.get((x_t.dtype, x_t.shape, x_t.device))
            if like is not None and x_t.is_contiguous() and not x_t.is_neg():
                if self._is_plain:
                    return self._engine.advance(x_t, like)
                return self._advance(x_t, like)
        return self(self._admitted(x_t))

    def _advance(self, x: Tensor, like: Tensor) -> Tensor:
        """A step in half precision, or with `check_finite`."""
        x = self._computed(x) if x.is_floating_point() else x
        output = self._engine.advance(x, like).to(self._dtype)
        if self._check_finite and not bool(self._engine.state().isfinite().all()):
            raise RuntimeError(f"{self._name}: the state holds a NaN or an infinity")
        return output

    def _read_tokens(self, wanted: bool) -> None:
        """Prepare for tokens, or for features."""
        self._engine.read_tokens(wanted)
        self._tokens = wanted
        tail = () if wanted else (self._input_size,)
        dtype = torch.int64 if wanted else self._dtype
        result = self._initial.new_empty(self._batch, self._initial.shape[-1])
        forms = {torch.Size((self._batch, *tail)): result}
        if self._batch == 1:
            forms[torch.Size(tail)] = result[0]
        self._results: Dict[tuple, Tensor] = {
            (dtype, shape, self._device): like for shape, like in forms.items()
        }

    def _admitted(self, x: Tensor) -> Tensor:
        """Another input in the form that `__call__` takes without more ado."""
        check_step(x, self._batch, self._input_size)
        is_float = x.is_floating_point()
        if x.device != self._device:
            raise ValueError(f"x_t: is on {x.device}, and the stream on {self._device}")
        converts = not is_float or torch.is_autocast_enabled(x.device.type)
        if x.dtype != self._dtype and not converts:
            raise ValueError(f"x_t: has type {x.dtype}, and the stream has {self._dtype}")
        if is_float == self._tokens:
            self._read_tokens(not is_float)
        x = x.detach().as_subclass(Tensor)
        return x.to(self._dtype if is_float else torch.int64).resolve_neg().contiguous()

    @property
    def state(self) -> StackedState:  # shape: (layers, B, W) each
        """A copy of the state, as `step` returns it for inputs with the axis B. May be set."""
        parts = self._engine.state().to(self._dtype).transpose(0, 1).unbind()
        parts = tuple(part.contiguous() for part in parts)
        return parts if len(parts) > 1 else parts[0]

    @state.setter
    def state(self, state: StackedState) -> None:
        self._engine.load(self._state(state))

    def reset(self, state: Optional[StackedState] = None) -> None:
        """Begin again in a state; default the initial one of the layers."""
        self._engine.load(self._initial if state is None else self._state(state))

    def fork(self) -> "Stream":
        """An independent stream that goes on from the same state. Both share the parameters."""
        other = object.__new__(type(self))
        vars(other).update(vars(self), _engine=self._engine.fork())
        return other

    __copy__ = fork

    def __deepcopy__(self, memo: dict) -> "Stream":
        return self.fork()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Stream cannot be pickled; pickle the layers and its `state`")

    def _computed(self, tensor: Tensor) -> Tensor:
        return tensor.to(compute_type(self._dtype))

    def _state(self, state: StackedState) -> Tensor:  # shape: (layers, S, B, W)
        """A caller's state.

        Raises:
            ValueError: it does not fit.
        """
        layers, count, batch, width = self._initial.shape
        shapes = [(layers, batch, width), (layers, width)]
        parts = parts_of(state, count, self._name, *shapes[: 2 if batch == 1 else 1])
        for part in parts:
            if part.dtype != self._dtype or part.device != self._device:
                raise ValueError(
                    f"state: is {part.dtype} on {part.device}, but the stream is {self._dtype} on"
                    f" {self._device}"
                )
        rows = [part.detach().reshape(shapes[0]) for part in parts]
        return self._computed(torch.stack(rows, dim=1))
