"""The LSTM's recurrence with Kronecker products, laid out as `kron_rnn` is."""

from .dispatch import kron_lstm

__all__ = ["kron_lstm"]
