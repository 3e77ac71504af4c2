"""The LSTM's recurrence as its definition reads: a loop that autograd differentiates."""

from typing import Optional, Sequence, Tuple

import torch
from torch import Tensor

from ..inputs import project, within_lengths
from ..kron.reference import kron_matmul_reference as kron_matmul


def kron_lstm_reference(
    x: Tensor,  # shape: (T, B, 4N); with weight: (T, B, I), or (T, B) of integers
    factors: Sequence[Sequence[Tensor]],  # shape: (P_f, Q_f) each, for each of i, f, g, o
    bias: Tensor,  # shape: (4N,)
    state: Tuple[Tensor, Tensor],  # shape: (B, N) each
    lengths: Optional[Tensor],  # shape: (B,)
    weight: Optional[Tensor],  # shape: (I, 4N)
    need_output: bool,
    checkpoint_every: int,
) -> Tuple[Tensor, Tuple[Tensor, Tensor]]:  # shapes: (T, B, N), twice (B, N)
    """One step after the other, with arguments as `kron_lstm` describes and has checked them.

    `checkpoint_every` is ignored: autograd keeps what it needs of every step.
    """
    u_tbw = project(within_lengths(x, lengths), weight)
    h, c = state
    outputs = []
    for t, u in enumerate(u_tbw):
        recurrent = torch.cat([kron_matmul(h, gate) for gate in factors], dim=-1)
        i, f, g, o = (recurrent + u + bias).chunk(4, dim=-1)
        new_c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        new_h = o.sigmoid() * new_c.tanh()
        if lengths is not None:
            live = (t < lengths).unsqueeze(1)
            new_h, new_c = torch.where(live, new_h, h), torch.where(live, new_c, c)
        h, c = new_h, new_c
        outputs.append(h)
    return (torch.stack(outputs) if need_output else h.new_empty(0)), (h, c)
