"""The two forms of an exported model: one reads whole sequences, the other takes a single step."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any, Callable, List, Tuple, Union

import torch
from torch import Tensor, nn
from torch._higher_order_ops.scan import scan

from ..files import atomic_write
from ..modules.layer import State
from ..trained import Trained
from .plain import Plain


class Sequences(nn.Module):
    """Whole sequences of one length a batch. One loop serves every length.

    inputs, axes: an example of the arguments, and the names of their axes of any size.
    names: of the arguments.
    """

    def __init__(self, plain: Plain) -> None:
        super().__init__()
        self.plain = plain
        self.names = ("x",)
        self.inputs = (example(plain, 2, 3),)
        self.axes: Tuple[Any, ...] = ({0: "B", 1: "T"},)

    def forward(
        self,
        x: Tensor,  # shape: (B, T, input_size), or (B, T) of integers
    ) -> Tuple[Tensor, ...]:  # (B, T, output_size) or (B, output_size), then (layers, B, W) each
        """The output and the last state."""

        def step(state: State, x_t: Tensor) -> Tuple[State, List[Tensor]]:
            state = self.plain.advance(x_t, state)
            return state, [state[0][-1].clone()] if self.plain.per_step else []

        start = self.plain.initial_state(x.shape[0])
        last, outputs = scan(step, start, x.transpose(0, 1))
        h = outputs[0].transpose(0, 1) if self.plain.per_step else last[0][-1]
        return self.plain.readout(h), *last


class Step(nn.Module):
    """One step of a stream; attributes as for `Sequences`.

    The buffers `initial_h`, …, of shape (layers, 1, W), are the state before the first input.
    """

    def __init__(self, plain: Plain) -> None:
        super().__init__()
        self.plain = plain
        for name, part in zip(plain.parts, plain.start, strict=True):
            self.register_buffer(f"initial_{name}", part)
        self.names = ("x", *plain.parts)
        self.inputs = (example(plain, 2), *plain.initial_state(2))
        self.axes: Tuple[Any, ...] = ({0: "B"}, tuple({1: "B"} for _ in plain.parts))

    def forward(
        self,
        x: Tensor,  # shape: (B, input_size), or (B,) of integers
        *state: Tensor,  # shape: (layers, B, W) each
    ) -> Tuple[Tensor, ...]:  # (B, output_size), then (layers, B, W) each
        """The output and the state after one more input."""
        state = self.plain.advance(x, state)
        return self.plain.readout(state[0][-1]), *state


Form = Union[Sequences, Step]


def example(plain: Plain, *shape: int) -> Tensor:
    """An input of this shape."""
    if plain.tokens:
        return torch.zeros(shape, dtype=torch.int64)
    return torch.zeros(*shape, plain.input_size)


@torch.no_grad()
def write(model: Trained, paths: List[Path], content: Callable[[Form], bytes]) -> List[Path]:
    """Write both forms; their files.

    Args:
        paths: for whole sequences, and for a single step.
        content: what the file of a form holds.
    """
    plain = Plain(model)
    forms: List[Form] = [Sequences(plain), Step(plain)]
    with ExitStack() as stack:
        for path, form in zip(paths, forms, strict=True):
            stack.enter_context(atomic_write(path)).write_bytes(content(form))
    return paths
