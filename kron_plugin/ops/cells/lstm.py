"""The recurrence of an LSTM with Kronecker products (KRU-LSTM)."""

from typing import Optional, Sequence, Tuple

from torch import Tensor

from ..recurrence import Cell, Recurrence, State


def step(
    recurrent: Sequence[Tensor], u: Sequence[Tensor], bias: Tensor, state: State, activation: str
) -> State:
    """c_t = σ(z_f) c_{t-1} + σ(z_i) tanh(z_g), h_t = σ(z_o) tanh(c_t), z_k = W_k h + u_k + b_k."""
    _, c = state
    parts = zip(recurrent, u, bias.chunk(4), strict=True)
    z_i, z_f, z_g, z_o = (w_h + u_k + b for w_h, u_k, b in parts)
    c = z_f.sigmoid() * c + z_i.sigmoid() * z_g.tanh()
    return z_o.sigmoid() * c.tanh(), c


recurrence = Recurrence(Cell("lstm", ("h", "c"), step, gates="ifgo", biases=4))


def kron_lstm(
    x: Tensor,  # shape: (T, B, 4N); with weight: (T, B, I), or (T, B) of integers
    factors: Sequence[Sequence[Tensor]],  # shape: (P_f, Q_f) each, for each of i, f, g, o
    bias: Tensor,  # shape: (4N,)
    state: Tuple[Tensor, Tensor],  # shape: (B, N) each
    lengths: Optional[Tensor] = None,  # shape: (B,)
    *,
    weight: Optional[Tensor] = None,  # shape: (I, 4N)
    need_output: bool = True,
    checkpoint_every: int = 1,
    backend: str = "auto",
) -> Tuple[Tensor, Tuple[Tensor, Tensor]]:  # shapes: (T, B, N), twice (B, N)
    """Run an LSTM with Kronecker products as its four recurrent matrices (KRU-LSTM).

    With z_k = W_k h_{t-1} + u_k + b_k for the gates k = i, f, g, o, in the order of torch.nn.LSTM::

        c_t = σ(z_f) c_{t-1} + σ(z_i) tanh(z_g)
        h_t = σ(z_o) tanh(c_t)

    Args:
        x: without `weight` the projected input u itself, gate after gate; with it, features
            (u_t = x_t @ weight) or integer tokens (u_t = weight[x_t]).
        factors: four sequences of real matrices, each with ∏P_f = ∏Q_f = N; the sizes may differ
            from gate to gate.
        bias: of the four gates, one after the other.
        state: h and c before the first input.
        lengths, need_output, checkpoint_every, backend: as for `kron_rnn`.

    Returns:
        h after each step, and the last h and c.

    Raises:
        ValueError, RuntimeError: as `kron_rnn`.
    """
    arguments = (x, factors, bias, state, lengths, weight)
    outputs, (h_n, c_n) = recurrence(*arguments, need_output, checkpoint_every, backend)
    return outputs, (h_n, c_n)
