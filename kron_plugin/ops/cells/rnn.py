"""The recurrence of a KRU."""

from typing import List, Optional, Sequence, Tuple, Union

import torch
from torch import Tensor

from ..activation import join, modrelu
from ..recurrence import Activation, Cell, Recurrence, State

ACTIVATIONS = {
    "modrelu": Activation(modrelu, moves_moduli=True),
    "tanh": Activation(lambda z, bias: torch.tanh(z + bias), is_real=True),
    "identity": Activation(lambda z, bias: z + (join(bias) if z.is_complex() else bias)),
}


def step(
    recurrent: Sequence[Tensor], u: Sequence[Tensor], bias: Tensor, state: State, activation: str
) -> State:
    """h_t = σ(W h_{t-1} + u_t; b) (KRU, "Formalism")."""
    return (ACTIVATIONS[activation].function(recurrent[0] + u[0], bias),)


recurrence = Recurrence(
    Cell(
        "rnn", ("h",), step, "", 1, ACTIVATIONS, is_real=False, from_output=True, has_butterfly=True
    )
)
check_backend = recurrence.backends.check


def available_backends(
    device: Union[str, torch.device] = "cpu",
    dtype: torch.dtype = torch.float32,
    is_complex: bool = True,
) -> List[str]:
    """The backends that can serve here, fastest first. May compile one to find out."""
    return recurrence.available(device, dtype, is_complex)


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

    States are real tensors of width W: N for real factors; 2N for complex ones, all real parts
    before all imaginary ones. Half precision is for storage only; computation is in float32. The
    fused backends square moduli: in float32, modReLU may treat a modulus below 1e-19 as zero and
    one above 1e19 as infinite.

    Args:
        x: without `weight` the projected input u itself; with it, features (u_t = x_t @ weight)
            or integer tokens (u_t = weight[x_t]).
        factors: real or complex matrices with ∏P_f = ∏Q_f = N.
        bias: of the nonlinearity. "modrelu": relu(|z| + b) z/|z|; "tanh": tanh(z + b), for real
            factors; "identity": z + b.
        h0: the state before the first input.
        lengths: how many steps of each sequence count (1 to T, default all). A finished sequence
            keeps its last state. Its later inputs are not read, whatever they are, and receive no
            gradient. The gradients of its later outputs go to that last state.
        need_output: False when only the last state is wanted; the first result is then empty.
        checkpoint_every: k, to keep every k-th state for the backward pass and compute the others
            again. Same gradients; memory for T/k + k states rather than T, and a second forward.
        backend: "auto" for the fastest that can serve, or a name of `available_backends()`.

    Returns:
        The state after each step, and the last one. After a NaN or infinity, a state is not finite
        to the end (but tanh bounds an infinity). So if the last state is finite, all of them are.

    Raises:
        ValueError: sizes or types do not fit together; the message names the argument.
        RuntimeError: the named backend cannot serve.
    """
    arguments = (x, [factors], bias, (h0,), lengths, weight)
    outputs, (h_n,) = recurrence(*arguments, need_output, checkpoint_every, backend, activation)
    return outputs, h_n
