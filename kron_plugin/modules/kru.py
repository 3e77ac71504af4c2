"""The Kronecker Recurrent Unit as a layer, used like `torch.nn.LSTM`."""

from math import sqrt
from typing import Any, Optional, Union

import torch
from torch import Tensor, nn

from ..ops.cells import rnn
from .arguments import by_name, choice, flag, place
from .factors import FactorSpec
from .layer import KronLayer, State
from .parameters import GroupedParameters
from .stack import RecurrentStack


class KRU(RecurrentStack):
    """h_t = σ(W h_{t-1} + U x_t) with W = W_0 ⊗ … ⊗ W_{F-1} (Jose, Cissé, Fleuret, ICML 2018).

    ::

        kru = KRU(input_size=1, hidden_size=512)      # nine 2x2 complex factors, 72 numbers
        output, h_n = kru(torch.randn(784, 16, 1))    # (784, 16, 1024), (1, 16, 1024)

    The output holds the real parts of a complex state, then its imaginary parts. So `output_size`
    is 2 · hidden_size for complex factors and hidden_size for real ones, and twice that for a
    bidirectional layer.

    Args:
        input_size: features per step; or, for integer inputs, the number of symbols.
        hidden_size: N, the size of the state (complex numbers for complex factors).
        factors: sizes whose products are N: "16,32", (16, 32), 512 for a single one. Default: the
            prime factors of N, so 2x2 for a power of two. Rectangular factors such as "2x4,4x2"
            give a W of rank ∏ min(P_f, Q_f) < N, which cannot be unitary.
        num_layers: stacked layers, each with its own parameters.
        bias: False removes the bias of "tanh" and "identity"; "modrelu" needs its bias.
        bidirectional: every layer reads in both directions.
        dropout: probability of dropping an output between layers.
        complex: complex factors. The real orthogonal matrices are two separate sets, of
            determinant 1 and −1, and training cannot cross. The complex unitary set is connected.
        activation: "modrelu", or "tanh" (real factors only) or "identity".
        unitary: "soft": add `unitary_penalty()` to the loss; "none": the penalty is 0; "hard":
            the factors stay exactly unitary whatever the optimiser does.
        angle: the eigenvalues of the first factors are at most this many radians from 1, so a
            state turns slowly. The angles of the factors add up. Factors must be square. Default:
            uniformly random factors.
        batch_first: inputs and outputs are (B, T, …) instead of (T, B, …).
        backend: of `kron_plugin.ops.kron_rnn`.
        checkpoint_every: keep only every n-th state for the backward pass and compute the others
            again. This saves memory and costs one more forward pass.
        check_finite: raise an error after a call whose last state holds a NaN or an infinity.
        device, dtype: of the parameters, as for `torch.nn.LSTM`.

    Arguments after hidden_size are given by name.

    Parameters are real tensors; a complex factor has shape (P_f, Q_f, 2), real and imaginary part.
    Every square factor starts exactly unitary. Every layer and direction learns its initial state
    `h0`. It starts away from 0: modReLU has no direction at 0, and its gradient no bound.

    Raises:
        ValueError: sizes do not fit together, or an argument is out of range; the message says
            what would fit.
        TypeError: an argument has another type or lacks its name.
    """

    title = "KRU"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *unnamed: Any,
        factors: FactorSpec = None,
        num_layers: int = 1,
        bias: bool = True,
        bidirectional: bool = False,
        dropout: float = 0.0,
        complex: bool = True,
        activation: str = "modrelu",
        unitary: str = "soft",
        angle: Optional[float] = None,
        batch_first: bool = False,
        backend: str = "auto",
        checkpoint_every: int = 1,
        check_finite: bool = False,
        device: Union[str, torch.device, None] = None,
        dtype: Optional[torch.dtype] = None,
    ) -> None:
        by_name("KRU", unnamed)

        def make_layer(features: int) -> KRULayer:
            return KRULayer(
                features,
                hidden_size,
                factors,
                bias=bias,
                complex=complex,
                activation=activation,
                unitary=unitary,
                angle=angle,
                backend=backend,
                checkpoint_every=checkpoint_every,
                check_finite=check_finite,
                device=device,
                dtype=dtype,
            )

        options = (num_layers, bidirectional, dropout, batch_first)
        super().__init__(make_layer, input_size, *options)

    def singular_values(self, layer: int = 0) -> Tensor:
        """All N singular values of W in one of `layers`, largest first."""
        return self.layers[layer].singular_values().squeeze(0)


class KRULayer(GroupedParameters, KronLayer):
    """One layer of `KRU` in one direction.

    Parameters: `factors`; `weight` (input_size, output_size), the rows of U; `bias` of the
    nonlinearity, (N,) for modReLU and (output_size,) otherwise, marked with
    `param_group = "biases"`; `h0` (output_size,).
    """

    recurrence = rnn.recurrence

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        factors: FactorSpec = None,
        *,
        bias: bool,
        complex: bool,
        activation: str,
        device: Union[str, torch.device, None],
        dtype: Optional[torch.dtype],
        **options: Any,
    ) -> None:
        where = place(device, dtype)
        choice("activation", activation, list(rnn.ACTIVATIONS))
        row = rnn.ACTIVATIONS[activation]
        if flag("complex", complex) and row.is_real:
            raise ValueError(f"activation={activation!r} needs complex=False")
        if not flag("bias", bias) and row.moves_moduli:
            raise ValueError(
                f"bias=False: activation={activation!r} is the identity without its bias; choose"
                " activation='identity'"
            )
        super().__init__(input_size, hidden_size, factors, complex=complex, **where, **options)
        self.activation = activation
        width = self.output_size
        self.weight = nn.Parameter(torch.empty(self.input_size, width, **where))
        size = self.recurrence.cell.bias_size(self.hidden_size, self.complex, activation)
        self.bias = nn.Parameter(torch.empty(size, **where)) if bias else None
        self.h0 = nn.Parameter(torch.empty(width, **where))
        self.reset_parameters()

    def group_of(self, name: str) -> Optional[str]:
        return "biases" if name == "bias" else None

    @torch.no_grad()
    def reset_parameters(self) -> None:
        super().reset_parameters()
        nn.init.xavier_uniform_(self.weight)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -0.01, 0.01)
        # A vector of length about 1 (uRNN section 4.4).
        nn.init.uniform_(self.h0, -sqrt(3 / self.output_size), sqrt(3 / self.output_size))

    def initial_state(self, batch: int) -> State:
        return (self.h0.expand(batch, -1),)

    def given_state(self, state: State) -> State:
        # h0 gets a gradient of zero instead of none. Momentum, and workers that wait for each
        # other's gradients, tell these apart.
        if torch.is_grad_enabled() or torch.jit.is_tracing():
            return (state[0] + 0 * self.h0.sum().to(state[0].dtype),)
        return state

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, activation={self.activation!r}"
