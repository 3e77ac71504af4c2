"""The backends of the LSTM's recurrence, and the one place where its arguments are checked."""

from typing import List, Optional, Sequence, Tuple

import torch
from torch import Tensor

from .. import checks, inputs
from ..backends import Backend, Backends, Problem
from ..cuda_kernels import obstacle as cuda_obstacle
from ..kron.flat import shapes_of
from . import cpu, operator
from .cuda import kron_lstm_cuda
from .reference import kron_lstm_reference

_BACKENDS = Backends(
    "kron_lstm",
    {
        "cuda": Backend("cuda", cuda_obstacle, kron_lstm_cuda),
        "cpu": Backend("cpu", cpu.obstacle, inputs.in_single(cpu.kron_lstm_cpu)),
        "reference": Backend(None, lambda problem: None, inputs.in_single(kron_lstm_reference)),
    },
)


def available_backends(device: str = "cpu", dtype: torch.dtype = torch.float32) -> List[str]:
    """The backends that can serve here, fastest first. May compile one to find out."""
    return _BACKENDS.available(Problem(torch.device(device), dtype, False))


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
    """Run an LSTM over a sequence, its four recurrent matrices Kronecker products (KRU-LSTM).

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
        lengths: how many steps of each sequence count (1 to T, default all). A finished sequence
            keeps its last h and c, and its later inputs, whatever they are, are not read and
            receive no gradient. What is asked of its later outputs is asked of its last h.
        need_output: False when only the last state is wanted; the first result then is empty.
        checkpoint_every: keep every so many-th state for the backward pass, and compute the others
            again. Same gradients; memory for T/k + k states rather than T, and more time.
        backend: "auto" for the fastest that can serve, "cuda", "cpu", or "reference", which alone
            has a second derivative.

    Returns:
        h after each step, and the last h and c.

    Raises:
        ValueError: sizes or types do not fit together; the message names the argument.
        RuntimeError: the named backend cannot serve.
    """
    factors = [list(gate) for gate in factors]
    checks.require("kron_lstm", len(state) == 2, "state must be a pair of h and c")
    h0, c0 = state
    _check_factors(factors)
    operator.check(x, [shapes_of(gate) for gate in factors], bias, h0, c0, weight)
    checks.check_factors("kron_lstm", [w for gate in factors for w in gate], h0)
    lengths = checks.checked_lengths("kron_lstm", lengths, x)
    checks.check_every("kron_lstm", checkpoint_every)
    run = _BACKENDS.run(backend, Problem(h0.device, h0.dtype, False))
    return run(x, factors, bias, state, lengths, weight, need_output, checkpoint_every)


def _check_factors(factors: Sequence[Sequence[Tensor]]) -> None:
    message = "factors has {} gates, expected 4"
    checks.require("kron_lstm", len(factors) == 4, message, len(factors))
    for name, gate in zip("ifgo", factors, strict=True):
        checks.require(
            "kron_lstm",
            bool(gate) and all(w.dim() == 2 and w.numel() and not w.is_complex() for w in gate),
            "factors of gate {} must be real matrices, of at least one row and column",
            name,
        )
