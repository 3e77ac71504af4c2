"""Products with a Kronecker product: one backend per file; `dispatch` chooses."""

from .dispatch import kron_matmul
from .reference import dense

__all__ = ["dense", "kron_matmul"]
