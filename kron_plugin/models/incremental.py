"""The base of decoders with a recurrent state: decoding symbol by symbol."""

from typing import Dict, Optional, Tuple

from fairseq.models import FairseqIncrementalDecoder
from torch import Tensor

from ..modules.layer import State
from .cells import Cell

KEY = "recurrent"


class RecurrentDecoder(FairseqIncrementalDecoder):
    """A decoder whose only memory is the state of its `cell`; beams can be reordered."""

    def __init__(self, dictionary, cell: Cell) -> None:
        super().__init__(dictionary)
        self.cell = cell

    def saved_state(self, incremental_state: Dict) -> Optional[State]:
        """The state after the symbols so far; None before the first symbol."""
        return (self.get_incremental_state(incremental_state, KEY) or {}).get("state")

    def run_cell(
        self,
        x: Tensor,  # shape: (T, B, …), as the cell takes it
        state: Optional[State],
        incremental_state: Optional[Dict],
    ) -> Tuple[Tensor, State]:  # shape: (T, B, output_size)
        """The outputs and the last state. Incremental decoding saves the state."""
        output, state = self.cell.run(x, state)
        if incremental_state is not None:
            self.set_incremental_state(incremental_state, KEY, {"state": state})
        return output, state

    def reorder_incremental_state(self, incremental_state: Dict, new_order: Tensor) -> None:
        state = self.saved_state(incremental_state)
        if state is not None:
            state = reorder(state, new_order)
            self.set_incremental_state(incremental_state, KEY, {"state": state})

    def max_positions(self) -> int:
        return int(1e9)


def reorder(
    state: State,  # shape: (layers, B, W) each
    new_order: Tensor,  # shape: (B',)
) -> State:
    """The state of the sequences `new_order`, in that order."""
    return tuple(part.index_select(1, new_order) for part in state)
