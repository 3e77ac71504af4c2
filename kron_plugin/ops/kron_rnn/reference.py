"""The recurrence as its definition reads: a loop that autograd differentiates."""

from typing import Optional, Sequence, Tuple

import torch
from torch import Tensor

from ..activation import join, modrelu, split
from ..inputs import project, within_lengths
from ..kron.reference import kron_matmul_reference as kron_matmul


def kron_rnn_reference(
    x: Tensor,  # shape: (T, B, W); with weight: (T, B, I), or (T, B) of integers
    factors: Sequence[Tensor],  # shape: (P_f, Q_f) each
    bias: Tensor,  # shape: (N,) for modrelu, (W,) otherwise
    h0: Tensor,  # shape: (B, W)
    lengths: Optional[Tensor],  # shape: (B,)
    weight: Optional[Tensor],  # shape: (I, W)
    activation: str,
    need_output: bool,
    checkpoint_every: int,
) -> Tuple[Tensor, Tensor]:  # shapes: (T, B, W), (B, W)
    """h_t = σ(W h_{t-1} + u_t), with arguments as `kron_rnn` describes and has checked them.

    `checkpoint_every` is ignored: autograd keeps what it needs of every step.
    """
    is_complex = factors[0].is_complex()
    u_tbw = project(within_lengths(x, lengths), weight)
    h = h0
    states = []
    for t, u in enumerate(u_tbw):
        if is_complex:
            z = split(kron_matmul(join(h), factors)) + u
        else:
            z = kron_matmul(h, factors) + u
        new = activate(z, bias, activation, is_complex)
        if lengths is not None:
            new = torch.where((t < lengths).unsqueeze(1), new, h)
        h = new
        states.append(h)
    return (torch.stack(states) if need_output else h.new_empty(0)), h


def activate(z: Tensor, bias: Tensor, activation: str, is_complex: bool) -> Tensor:
    """σ(z; b) on states as they are stored: split in two halves when complex."""
    if activation == "modrelu":
        return split(modrelu(join(z), bias)) if is_complex else modrelu(z, bias)
    return torch.tanh(z + bias) if activation == "tanh" else z + bias
