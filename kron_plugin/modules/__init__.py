"""Layers for plain PyTorch; nothing here needs fairseq."""

from .factors import default_factors, parse_factors
from .kru import KRU
from .kru_lstm import KRULSTM
from .nearest import nearest_kronecker
from .readout import Readout
from .unitary import singular_values, unitary_, unitary_deviation, unitary_penalty

__all__ = [
    "KRU",
    "KRULSTM",
    "Readout",
    "default_factors",
    "nearest_kronecker",
    "parse_factors",
    "singular_values",
    "unitary_",
    "unitary_deviation",
    "unitary_penalty",
]
