"""Pure tensor functions: torch only, no parameters, no fairseq."""

from .activation import join, modrelu, split
from .kron import dense, kron_matmul
from .kron_rnn import available_backends, kron_rnn

__all__ = [
    "available_backends",
    "dense",
    "join",
    "kron_matmul",
    "kron_rnn",
    "modrelu",
    "split",
]
