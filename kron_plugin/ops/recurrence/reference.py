"""Any recurrence by its definition: a loop that autograd differentiates."""

from typing import Callable

import torch
from torch import Tensor

from ..activation import join, split
from ..inputs import project, within_lengths
from ..kron.reference import kron_matmul_reference as kron_matmul
from .cell import Cell


def reference(cell: Cell) -> Callable:
    """The backend of a cell that is its definition."""

    def run(
        x, numbers, layout, bias, state, lengths, weight, activation, need_output, checkpoint_every
    ):
        """One step after the other, with the checked arguments of `Recurrence`.

        `checkpoint_every` is ignored: autograd keeps what it needs from every step.
        """
        factors = layout.matrices(numbers)
        inner, stored = (join, split) if layout.is_complex else (_same, _same)
        state = tuple(map(inner, state))
        outputs = []
        for t, row in enumerate(project(within_lengths(x, lengths), weight)):
            recurrent = [kron_matmul(state[0], product) for product in factors]
            u = [inner(part) for part in row.chunk(len(factors), dim=-1)]
            new = cell.step(recurrent, u, bias, state, activation)
            if lengths is not None:
                live = (t < lengths).unsqueeze(1)
                new = tuple(torch.where(live, a, b) for a, b in zip(new, state, strict=True))
            state = new
            outputs.append(stored(state[0]))
        last = tuple(map(stored, state))
        return (torch.stack(outputs) if need_output else last[0].new_empty(0)), last

    return run


def _same(tensor: Tensor) -> Tensor:
    return tensor
