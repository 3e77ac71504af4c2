"""A recurrence over a whole sequence, of any cell: one definition, and one driver per backend."""

from .cell import Activation, Cell, State
from .dispatch import Recurrence
from .stream import Weights

__all__ = ["Activation", "Cell", "Recurrence", "State", "Weights"]
