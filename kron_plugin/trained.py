"""A trained checkpoint as a plain module: load it, call it, stream with it."""

from copy import copy, deepcopy
from pathlib import Path
from typing import Any, Optional, Union

import torch
from torch import Tensor, nn

from .checkpoints import plain_data_only
from .published import find_checkpoint
from .registration import register
from .restore import build, read_known

register()

from .models.cells import Cell  # noqa: E402
from .models.kru import KRUModel  # noqa: E402  (needs register)


def load(path: Union[str, Path]) -> "Trained":
    """The model of a checkpoint of `fairseq-train`, on the CPU, in evaluation; or the model of this
    name in a checkout's recipes/models.

    ::

        model = kron_plugin.load("runs/char_lm_quick/checkpoint_best.pt")
        print(model.decode(model(model.encode("the compan"))))

    Neither `--user-dir` nor the data are needed. No code in the file is ever run. A task of your
    own has to be imported first. Checkpoints of `char_lm` made before version 0.2 hold no symbols
    and still need their data.

    Raises:
        ValueError: the file is no checkpoint of one of our tasks; the message says why.
    """
    path = find_checkpoint(path)
    with plain_data_only():
        state = read_known(path, of_ours=True)
        model, _, task = build(path, state)
    return Trained(model.cell, model.readout, task).eval()


class Trained(nn.Module):
    """Recurrent layers and a readout, with a task's way to encode inputs and decode outputs.

    `cell` is a `KRU`, `KRULSTM` or `KRUGRU`, or a `BaselineCell` around torch's own layer.

    Args:
        cell, readout: the modules of a model.
        task: a task of the plugin. `task.spec` tells the shapes below.
    """

    def __init__(self, cell: Cell, readout: nn.Module, task: Any) -> None:
        super().__init__()
        self.model = KRUModel(cell, readout, task.spec.per_step, dropout=0.0)
        self.task = task

    @property
    def cell(self) -> Cell:
        """The recurrent layers."""
        return self.model.cell

    @property
    def readout(self) -> nn.Module:
        """The layer from states to outputs."""
        return self.model.readout

    def encode(self, example: Any) -> Tensor:  # shape: (T, input_size), or (T,) of integers
        """An example as an input. `copy_memory`: L symbols; `adding`: numbers and markers;
        `pixel_mnist`: an image; `char_lm`: a text; `music`: a MIDI file or a piano roll.

        Raises:
            ValueError: it is not an example of the task.
        """
        return self.task.encode(example)

    def decode(self, output: Tensor) -> Any:  # shape: (T, output_size), or (output_size,)
        """What the output for one example says. `copy_memory`: the symbols; `adding`: the sum;
        `pixel_mnist`: the digit; `char_lm`: the likeliest symbol after every step, as a text;
        `music`: the keys that are likely to sound after every step."""
        return self.task.decode(output)

    def forward(
        self,
        source: Tensor,  # shape: (B, T, input_size), or (B, T) of integers; B is optional
        lengths: Optional[Tensor] = None,  # shape: (B,)
    ) -> Tensor:  # shape: (B, T, output_size), or (B, output_size) for one answer a sequence
        """The output for inputs, without B if they have none."""
        if source.dim() == (1 if self.task.spec.tokens else 2):
            return self.model(source[None])[0]
        return self.model(source, lengths)

    def stream(self, batch_size: int = 1) -> "OutputStream":
        """An object that reads one input a call and returns the output after it.

        Raises:
            ValueError: the layers are bidirectional and need the whole sequence.
        """
        return OutputStream(self.cell.stream(batch_size), self.readout)


class OutputStream:
    """What `Trained.stream` returns. `output = stream(x_t)` is the output after one more input.

    It keeps the state of the layers. `state` reads and sets it, `reset()` begins a new sequence,
    and `fork()` is a second stream that goes on from here. Outputs are those of the model called
    with the whole sequence, in float32 to 1e-5 of the largest one. For a task with one answer a
    sequence it is the answer so far.
    """

    def __init__(self, stream: Any, readout: nn.Module) -> None:
        self._stream, self._readout = stream, deepcopy(readout)

    @torch.no_grad()
    def __call__(
        self,
        x_t: Tensor,  # shape: (B, input_size), or (B,) of integers; without B if it is 1
    ) -> Tensor:  # shape: (B, output_size), without B as x_t
        """The output after one more input.

        Raises:
            ValueError, IndexError: x_t does not fit; the state is as before.
        """
        return self._readout(self._stream(x_t))

    @property
    def state(self) -> Any:
        """A copy of the state of the layers. May be set."""
        return self._stream.state

    @state.setter
    def state(self, state: Any) -> None:
        self._stream.state = state

    def reset(self) -> None:
        """Begin a new sequence."""
        self._stream.reset()

    def fork(self) -> "OutputStream":
        """An independent stream that goes on from the same state."""
        return OutputStream(copy(self._stream), self._readout)

    __copy__ = fork
