"""The backends of the recurrence, and the one place where its arguments are checked."""

from typing import List, Optional, Sequence, Tuple

import torch
from torch import Tensor

from .. import checks, inputs
from ..backends import Backend, Backends, Problem
from ..cuda_kernels import obstacle as cuda_obstacle
from ..kron.flat import shapes_of
from . import cpu, operator
from .cuda import kron_rnn_cuda
from .reference import kron_rnn_reference

ACTIVATIONS = tuple(operator.ACTIVATIONS)

_BACKENDS = Backends(
    "kron_rnn",
    {
        "cuda": Backend("cuda", cuda_obstacle, kron_rnn_cuda),
        "cpu": Backend("cpu", cpu.obstacle, inputs.in_single(cpu.kron_rnn_cpu)),
        "reference": Backend(None, lambda problem: None, inputs.in_single(kron_rnn_reference)),
    },
)


def available_backends(
    device: str = "cpu", dtype: torch.dtype = torch.float32, is_complex: bool = True
) -> List[str]:
    """The backends that can serve here, fastest first. May compile one to find out."""
    return _BACKENDS.available(Problem(torch.device(device), dtype, is_complex))


def check_backend(name: str) -> None:
    """Raise a ValueError unless there is a backend of that name, or it is "auto"."""
    _BACKENDS.check(name)


def kron_rnn(
    x: Tensor,  # shape: (T, B, W); with weight: (T, B, I), or (T, B) of integers
    factors: Sequence[Tensor],  # shape: (P_f, Q_f) each
    bias: Tensor,  # shape: (N,) for modrelu, (W,) otherwise
    h0: Tensor,  # shape: (B, W)
    lengths: Optional[Tensor] = None,  # shape: (B,)
    *,
    weight: Optional[Tensor] = None,  # shape: (I, W)
    activation: str = "modrelu",
    need_output: bool = True,
    checkpoint_every: int = 1,
    backend: str = "auto",
) -> Tuple[Tensor, Tensor]:  # shapes: (T, B, W), (B, W)
    """Run h_t = σ(W h_{t-1} + u_t) over a sequence, W = W_0 ⊗ … ⊗ W_{F-1} (KRU, "Formalism").

    States are real tensors of width W: N for real factors, 2N for complex ones, whose real parts
    come first and imaginary parts second. In half precision they are stored but not computed with:
    that is float32. The fused backends square moduli: in float32 modReLU may take one below 1e-19
    for zero, and one above 1e19 for infinite.

    Args:
        x: without `weight` the projected input u itself; with it, features (u_t = x_t @ weight)
            or integer tokens (u_t = weight[x_t]).
        factors: real or complex matrices with ∏P_f = ∏Q_f = N.
        bias: of the nonlinearity. "modrelu": relu(|z| + b) z/|z|; "tanh": tanh(z + b), for real
            factors; "identity": z + b.
        h0: the state before the first input.
        lengths: how many steps of each sequence count (1 to T, default all). A finished sequence
            keeps its last state, and its later inputs, whatever they are, are not read and receive
            no gradient. What is asked of its later outputs is asked of that last state.
        need_output: False when only the last state is wanted; the first result then is
            empty.
        checkpoint_every: keep every so many-th state for the backward pass, and compute the others
            again. Same gradients; memory for T/k + k states rather than T, and a second forward.
        backend: "auto" for the fastest that can serve, or a name of `available_backends()`.

    Returns:
        The state after each step, and the last one. A NaN or infinity that has entered a state
        leaves it not finite to the end (but tanh bounds an infinity), so a last state that is
        finite vouches for all of them.

    Raises:
        ValueError: sizes or types do not fit together; the message names the argument.
        RuntimeError: the named backend cannot serve.
    """
    factors = list(factors)
    _check_factors(factors)
    operator.check(x, shapes_of(factors), bias, h0, weight, factors[0].is_complex(), activation)
    checks.check_factors("kron_rnn", factors, h0)
    lengths = checks.checked_lengths("kron_rnn", lengths, x)
    checks.check_every("kron_rnn", checkpoint_every)
    run = _BACKENDS.run(backend, Problem(h0.device, h0.dtype, factors[0].is_complex()))
    return run(x, factors, bias, h0, lengths, weight, activation, need_output, checkpoint_every)


def _check_factors(factors: Sequence[Tensor]) -> None:
    fit = bool(factors) and all(w.dim() == 2 and w.numel() for w in factors)
    message = "factors must be matrices, of at least one row and column"
    checks.require("kron_rnn", fit, message)
    alike = all(w.is_complex() == factors[0].is_complex() for w in factors)
    checks.require("kron_rnn", alike, "factors must be all real or all complex")
