"""Layers of one cell upon each other that read a step a call: what calls have in common, done once.

A state is one tensor, (layers, S, B, W). All is in the type of computation, and without gradients.
"""

import weakref
from typing import Any, Callable, Dict, List, NamedTuple, Sequence

import torch
from torch import Tensor

from ..inputs import MAX_FEATURES
from ..kron.flat import Flat
from ..native import kernel
from .cell import Cell, State
from .cpu import Call


class Weights(NamedTuple):
    """The parameters of a layer; nobody else changes them."""

    factors: Flat
    bias: Tensor
    weight: Tensor  # shape: (I, K·W)


class StepStream:
    """A stream by calls of the recurrence: for any device, and without a compiler."""

    parts: List[State]  # the state of each layer

    def __init__(self, run: Callable, layers: Sequence[Weights], state: Tensor) -> None:
        self.run, self.layers = run, layers
        self.load(state)

    def read_tokens(self, wanted: bool) -> None:
        """Nothing to prepare: the recurrence takes both forms of input."""

    @torch.no_grad()
    def advance(
        self,
        x: Tensor,  # shape: (B, I), or (B,) of int64; B may be absent
        like: Tensor,  # what the result is to be like; shape: (B, W), or without B
    ) -> Tensor:
        """The last layer's output.

        Raises:
            IndexError: a token has no row in the weight.
        """
        after: List[State] = []
        tokens = not x.is_floating_point()
        x = x.reshape(1, self.batch) if tokens else x.reshape(1, self.batch, -1)
        for layer, before in zip(self.layers, self.parts, strict=True):
            last = self.run(x, layer, before)
            after.append(last)
            x = last[0].unsqueeze(0)
        self.parts = after
        return x.clone().view(like.shape)  # a caller may write to it

    def load(self, state: Tensor) -> None:
        """Replace the state."""
        self.batch = state.shape[2]
        self.parts = [tuple(layer.clone().unbind()) for layer in state]

    def state(self) -> Tensor:
        """A copy of the state."""
        return torch.stack([torch.stack(parts) for parts in self.parts])

    def fork(self) -> "StepStream":
        """Another stream with the same weights and a copy of the state."""
        return StepStream(self.run, self.layers, self.state())


class KernelStream:
    """A stream by the CPU kernel, which keeps the state, the prepared products and its memory.

    Raises:
        MemoryError: there is not enough for these.
    """

    def __init__(
        self, cell: Cell, layers: Sequence[Weights], activation: str, state: Tensor
    ) -> None:
        self.cell, self.layers, self.activation, self.shape = cell, layers, activation, state.shape
        self.like = layers[0].bias
        layout = layers[0].factors.layout
        self.functions = kernel.stream(cell.name, self.like.dtype, layout.is_complex)
        self._open(False)
        self.load(state)

    def _open(self, tokens: bool) -> None:
        calls, alive = (Call * len(self.layers))(), []
        for i, layer in enumerate(self.layers):
            reads_tokens = tokens and i == 0
            fields = _fields(self.cell, layer, self.activation, self.shape, reads_tokens)
            alive.append(kernel.fill(calls[i], self.cell.operation, fields))
        self.tokens = tokens
        self.handle = self.functions.open(calls, len(calls), MAX_FEATURES)
        if not self.handle:
            raise MemoryError(f"{self.cell.operation}: no memory for a stream")
        self.close = weakref.finalize(self, self.functions.close, self.handle)

    def read_tokens(self, wanted: bool) -> None:
        """Expect tokens, or features."""
        if wanted != self.tokens:
            state, close = self.state(), self.close
            self._open(wanted)
            self.load(state)
            close()

    def advance(
        self,
        x: Tensor,  # shape: (B, I), or (B,) of int64; B may be absent; contiguous
        like: Tensor,  # what the result is to be like; shape: (B, W), or without B
    ) -> Tensor:
        """The last layer's output.

        Raises:
            IndexError: a token has no row in the weight.
        """
        output = torch.empty_like(like)  # in a third of the time of other ways
        if self.functions.advance(self.handle, x.data_ptr(), output.data_ptr()):
            symbols = self.layers[0].weight.shape[0]
            raise IndexError(f"{self.cell.operation}: tokens must be from 0 to {symbols - 1}")
        return output

    def load(self, state: Tensor) -> None:
        """Replace the state."""
        state = state.contiguous()
        self.functions.load(self.handle, state.data_ptr())

    def state(self) -> Tensor:
        """A copy of the state."""
        state = self.like.new_empty(self.shape)
        self.functions.store(self.handle, state.data_ptr())
        return state

    def fork(self) -> "KernelStream":
        """Another stream with the same weights and a copy of the state."""
        other = KernelStream(self.cell, self.layers, self.activation, self.state())
        other.read_tokens(self.tokens)
        return other


def _fields(
    cell: Cell, layer: Weights, activation: str, shape: torch.Size, tokens: bool
) -> Dict[str, Any]:
    """The fields of a call of one step."""
    numbers, layout = layer.factors
    symbols = layer.weight.shape[0]
    return {
        "steps": 1,
        "batch": shape[2],
        "size": shape[3] // (2 if layout.is_complex else 1),
        "inputs": -1 if tokens else symbols,
        "token_rows": symbols if tokens else 0,
        "activation": list(cell.activations).index(activation),
        "every": 1,
        "counts": torch.tensor(layout.counts),
        "shapes": torch.tensor(layout.shapes),
        "factors": numbers,
        "weight": layer.weight,
        "bias": layer.bias,
    }
