"""Pure tensor functions: torch only, no parameters, no fairseq."""

from .activation import as_complex, join, modrelu, split
from .kron import dense, kron_matmul
from .kron_lstm import kron_lstm
from .kron_rnn import ACTIVATIONS, available_backends, check_backend, kron_rnn

__all__ = [
    "ACTIVATIONS",
    "as_complex",
    "available_backends",
    "check_backend",
    "dense",
    "join",
    "kron_lstm",
    "kron_matmul",
    "kron_rnn",
    "modrelu",
    "split",
]
