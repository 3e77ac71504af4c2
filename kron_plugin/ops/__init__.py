"""Pure tensor functions: torch only, no parameters, no fairseq."""

from .activation import as_complex, join, modrelu, split
from .cells.gru import kron_gru
from .cells.lstm import kron_lstm
from .cells.rnn import ACTIVATIONS, available_backends, check_backend, kron_rnn
from .kron import dense, kron_matmul

__all__ = [
    "ACTIVATIONS",
    "as_complex",
    "available_backends",
    "check_backend",
    "dense",
    "join",
    "kron_gru",
    "kron_lstm",
    "kron_matmul",
    "kron_rnn",
    "modrelu",
    "split",
]
