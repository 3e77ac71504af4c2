"""The recurrence of a GRU with Kronecker products (KRU-GRU)."""

from typing import Optional, Sequence, Tuple

from torch import Tensor

from ..recurrence import Cell, Recurrence, State


def step(
    recurrent: Sequence[Tensor], u: Sequence[Tensor], bias: Tensor, state: State, activation: str
) -> State:
    """Cho et al., 2014, with the reset gate after the product, as in torch.nn.GRU."""
    b_r, b_z, b_n, b_h = bias.chunk(4)
    r = (recurrent[0] + u[0] + b_r).sigmoid()
    z = (recurrent[1] + u[1] + b_z).sigmoid()
    n = (u[2] + b_n + r * (recurrent[2] + b_h)).tanh()
    return ((1 - z) * n + z * state[0],)


recurrence = Recurrence(Cell("gru", ("h",), step, gates="rzn", biases=4, splits=True))


def kron_gru(
    x: Tensor,  # shape: (T, B, 3N); with weight: (T, B, I), or (T, B) of integers
    factors: Sequence[Sequence[Tensor]],  # shape: (P_f, Q_f) each, for each of r, z, n
    bias: Tensor,  # shape: (4N,)
    h0: Tensor,  # shape: (B, N)
    lengths: Optional[Tensor] = None,  # shape: (B,)
    *,
    weight: Optional[Tensor] = None,  # shape: (I, 3N)
    need_output: bool = True,
    checkpoint_every: int = 1,
    backend: str = "auto",
) -> Tuple[Tensor, Tensor]:  # shapes: (T, B, N), (B, N)
    """Run a GRU with Kronecker products as its three recurrent matrices (KRU-GRU).

    In the order of torch.nn.GRU::

        r_t = σ(W_r h_{t-1} + u_r + b_r)
        z_t = σ(W_z h_{t-1} + u_z + b_z)
        n_t = tanh(u_n + b_n + r_t (W_n h_{t-1} + b_h))
        h_t = (1 - z_t) n_t + z_t h_{t-1}

    Args:
        x: without `weight` the projected input u itself, gate after gate; with it, features
            (u_t = x_t @ weight) or integer tokens (u_t = weight[x_t]).
        factors: three sequences of real matrices, each with ∏P_f = ∏Q_f = N.
        bias: b_r, b_z, b_n and b_h, one after the other.
        h0, lengths, need_output, checkpoint_every, backend: as for `kron_rnn`.

    Returns:
        h after each step, and the last one.

    Raises:
        ValueError: sizes or types do not fit together; the message names the argument.
        RuntimeError: the named backend cannot serve.
    """
    arguments = (x, factors, bias, (h0,), lengths, weight)
    outputs, (h_n,) = recurrence(*arguments, need_output, checkpoint_every, backend)
    return outputs, h_n
