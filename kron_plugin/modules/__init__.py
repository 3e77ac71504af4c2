"""Layers for plain PyTorch; nothing here needs fairseq."""

from typing import Dict, Type

from .factors import default_factors, parse_factors
from .groups import parameter_groups
from .kru import KRU
from .kru_gru import KRUGRU
from .kru_lstm import KRULSTM
from .nearest import nearest_kronecker
from .readout import Readout
from .stack import RecurrentStack
from .unitary import singular_values, unitary_, unitary_deviation, unitary_penalty

CELLS: Dict[str, Type[RecurrentStack]] = {
    "kru": KRU,
    "kru_lstm": KRULSTM,
    "kru_gru": KRUGRU,
}  # by the names of fairseq's --cell

__all__ = [
    "CELLS",
    "KRU",
    "KRUGRU",
    "KRULSTM",
    "Readout",
    "default_factors",
    "nearest_kronecker",
    "parameter_groups",
    "parse_factors",
    "singular_values",
    "unitary_",
    "unitary_deviation",
    "unitary_penalty",
]
