"""The recurrence over a whole sequence, with one backend per file and `dispatch` choosing."""

from .dispatch import available_backends, kron_rnn

__all__ = ["available_backends", "kron_rnn"]
