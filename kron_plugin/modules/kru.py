"""The Kronecker Recurrent Unit as a layer, used like `torch.nn.LSTM`."""

from math import sqrt
from typing import Any, List, Optional, Tuple, Union

import torch
from torch import Tensor, nn

from ..ops import ACTIVATIONS, available_backends, kron_rnn
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

    A complex state leaves the layer as its real parts followed by its imaginary parts, so
    `output_size` is 2 · hidden_size for complex factors and hidden_size for real ones, times two
    when the layer reads in both directions.

    Args:
        input_size: features per step; or, for integer inputs, the number of symbols.
        hidden_size: N, the size of the state (complex numbers for complex factors).
        factors: sizes whose products are N: "16,32", (16, 32), 512 for a single one. Default: the
            prime factors of N, so 2x2 for a power of two. Rectangular ones, "2x4,4x2", give a W
            of rank ∏ min(P_f, Q_f) < N, which cannot be unitary.
        num_layers: layers upon each other, each with parameters of its own.
        bias: False leaves out the bias of "tanh" and "identity"; "modrelu" is nothing without one.
        bidirectional: every layer reads in both directions.
        dropout: probability with which outputs are dropped between layers.
        complex: complex factors. The real orthogonal matrices fall apart in two sets, of
            determinant 1 and −1, and training cannot cross; the complex unitary ones do not.
        activation: "modrelu", or "tanh" (real factors only) or "identity".
        unitary: "soft", for the loss to count `unitary_penalty()`; "none", whose penalty is 0; or
            "hard", with factors that are exactly unitary whatever the optimiser does.
        angle: start with factors whose eigenvalues are at most so many radians from 1, so that a
            state turns slowly; else they start uniformly random. Their angles add up over the
            factors. It wants square ones.
        batch_first: inputs and outputs are (B, T, …) instead of (T, B, …).
        backend: of `kron_plugin.ops.kron_rnn`.
        checkpoint_every: keep only every so many-th state for the backward pass, and compute the
            others again: less memory for one more forward pass.
        check_finite: after every call make sure that the state holds no NaN or infinity.
        device, dtype: where and in which type the parameters are made, as for `torch.nn.LSTM`.

    What comes after hidden_size is given by name.

    Parameters are real tensors; a complex factor has shape (P_f, Q_f, 2), real and imaginary part.
    Every square factor starts exactly unitary. Every layer and direction learns its initial state
    `h0`, which starts away from 0, where modReLU has no direction and no bound on its gradient.

    Raises:
        ValueError: sizes that do not fit together, or an argument out of its range; the message
            says what would be right.
        TypeError: an argument of another type, or without its name.
    """

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
        """All N singular values of W, largest first, in one of `layers`."""
        return self.layers[layer].singular_values().squeeze(0)


class KRULayer(GroupedParameters, KronLayer):
    """One layer of `KRU` in one direction.

    Parameters: `factors`; `weight` (input_size, output_size), the rows of U; `bias` of the
    nonlinearity, (N,) for modReLU and (output_size,) otherwise, marked with
    `param_group = "biases"`; `h0` (output_size,).
    """

    state_parts = 1

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
        choice("activation", activation, ACTIVATIONS)
        if flag("complex", complex) and activation == "tanh":
            raise ValueError("activation='tanh' needs complex=False")
        if not flag("bias", bias) and activation == "modrelu":
            raise ValueError(
                "bias=False: activation='modrelu' is the identity without its bias; choose"
                " activation='identity'"
            )
        super().__init__(
            input_size, hidden_size, factors, products=1, complex=complex, **where, **options
        )
        self.activation = activation
        width = self.output_size
        self.weight = nn.Parameter(torch.empty(self.input_size, width, **where))
        size = self.hidden_size if activation == "modrelu" else width
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
        # A start of length about 1 (uRNN section 4.4).
        nn.init.uniform_(self.h0, -sqrt(3 / self.output_size), sqrt(3 / self.output_size))

    def initial_state(self, batch: int) -> State:
        return (self.h0.expand(batch, -1),)

    def given_state(self, state: State) -> State:
        # A gradient of zero rather than none: to momentum, and to workers that wait for each
        # other's gradients, it is not the same.
        none = 0 * self.h0.sum().to(state[0].dtype)
        wanted = torch.is_grad_enabled() or torch.jit.is_tracing()
        return (state[0] + none,) if wanted else state

    def run(
        self, x: Tensor, state: State, lengths: Optional[Tensor], need_output: bool
    ) -> Tuple[Tensor, State]:
        output, h_n = kron_rnn(
            x,
            self.matrices(),
            self.offsets(),
            state[0],
            lengths,
            weight=self.weight,
            activation=self.activation,
            need_output=need_output,
            checkpoint_every=self.checkpoint_every,
            backend=self.backend,
        )
        return output, (h_n,)

    def available_backends(self) -> List[str]:
        return available_backends(str(self.h0.device), self.h0.dtype, self.complex)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, activation={self.activation!r}"
