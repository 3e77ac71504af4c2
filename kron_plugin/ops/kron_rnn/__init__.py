"""The recurrence over a whole sequence, with one backend per file and `dispatch` choosing."""

from .dispatch import ACTIVATIONS, available_backends, check_backend, kron_rnn

__all__ = ["ACTIVATIONS", "available_backends", "check_backend", "kron_rnn"]
