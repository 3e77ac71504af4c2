"""Products with a Kronecker product, with one backend per file and `dispatch` choosing."""

from .dispatch import kron_matmul
from .reference import dense

__all__ = ["dense", "kron_matmul"]
