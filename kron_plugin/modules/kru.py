"""The Kronecker Recurrent Unit as a layer, used like `torch.nn.LSTM`."""

from math import sqrt
from typing import List, Optional, Tuple

import torch
from torch import Tensor, nn

from ..ops import ACTIVATIONS, check_backend, kron_rnn
from .factors import FactorSpec, format_factors, parse_factors
from .unitary import singular_values, unitary_, unitary_deviation, unitary_penalty


class KRU(nn.Module):
    """h_t = σ(W h_{t-1} + U x_t) with W = W_0 ⊗ … ⊗ W_{F-1} (Jose, Cissé, Fleuret, ICML 2018).

    ::

        kru = KRU(input_size=1, hidden_size=512)      # nine 2x2 complex factors, 72 numbers
        output, h_n = kru(torch.randn(784, 16, 1))    # (784, 16, 1024), (1, 16, 1024)

    A complex state leaves the layer as its real parts followed by its imaginary parts, so
    `output_size` is 2 · hidden_size for complex factors and hidden_size for real ones.

    Args:
        input_size: features per step; or, for integer inputs, the number of symbols.
        hidden_size: N, the size of the state (complex numbers for complex factors).
        factors: sizes whose products are N: "16,32", (16, 32), rectangular "2x4,4x2". Default:
            the prime factors of N, so 2x2 for a power of two.
        complex: complex factors. The real orthogonal matrices fall apart in two sets, of
            determinant 1 and −1, and training cannot cross; the complex unitary ones do not.
        activation: "modrelu", or "tanh" (real factors only) or "identity".
        batch_first: inputs and outputs are (B, T, …) instead of (T, B, …).
        backend: of `kron_plugin.ops.kron_rnn`.
        checkpoint_every: keep only every so many-th state for the backward pass, and compute the
            others again: less memory for one more forward pass.
        check_finite: after every call make sure that the state holds no NaN or infinity.

    Parameters are real tensors; a complex factor has shape (P_f, Q_f, 2), real and imaginary part.
    Every factor starts exactly unitary. The initial state `h0` is learned and starts away from 0,
    where modReLU has no direction and no bound on its gradient.

    Raises:
        ValueError: sizes that do not fit together; the message says which would.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        factors: FactorSpec = None,
        *,
        complex: bool = True,
        activation: str = "modrelu",
        batch_first: bool = False,
        backend: str = "auto",
        checkpoint_every: int = 1,
        check_finite: bool = False,
    ) -> None:
        super().__init__()
        if input_size < 1:
            raise ValueError(f"input_size={input_size}: must be at least 1")
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation={activation!r}: choose from {ACTIVATIONS}")
        if checkpoint_every < 1:
            raise ValueError(f"checkpoint_every={checkpoint_every}: must be at least 1")
        check_backend(backend)
        if complex and activation == "tanh":
            raise ValueError("activation='tanh' needs complex=False")
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.factor_sizes = parse_factors(factors, hidden_size)
        self.complex = complex
        self.activation = activation
        self.batch_first = batch_first
        self.backend = backend
        self.checkpoint_every = checkpoint_every
        self.check_finite = check_finite

        tail = (2,) if complex else ()
        self.factors = nn.ParameterList(
            nn.Parameter(torch.empty(p, q, *tail)) for p, q in self.factor_sizes
        )
        self.weight = nn.Parameter(torch.empty(input_size, self.output_size))
        self.bias = nn.Parameter(
            torch.empty(hidden_size if activation == "modrelu" else self.output_size)
        )
        self.h0 = nn.Parameter(torch.empty(self.output_size))
        self._mark_factors()
        self.reset_parameters()

    def _mark_factors(self) -> None:
        """`param_group` is the toolkit's word for: an optimiser may treat this one apart."""
        for factor in self.factors:
            factor.param_group = "factors"

    def __setstate__(self, state: dict) -> None:
        """What is copied or unpickled: its parameters have lost their marks."""
        super().__setstate__(state)
        self._mark_factors()

    @property
    def output_size(self) -> int:
        """Features of the output: 2N for complex factors, N for real ones."""
        return 2 * self.hidden_size if self.complex else self.hidden_size

    @torch.no_grad()
    def reset_parameters(self) -> None:
        for factor in self.matrices():
            unitary_(factor)
        nn.init.xavier_uniform_(self.weight)
        nn.init.uniform_(self.bias, -0.01, 0.01)
        # A start of length about 1 (uRNN section 4.4).
        nn.init.uniform_(self.h0, -sqrt(3 / self.output_size), sqrt(3 / self.output_size))

    def matrices(self) -> List[Tensor]:
        """The factors W_f as matrices (P_f, Q_f), complex if the layer is; views where possible."""
        if not self.complex:
            return list(self.factors)
        # Half-precision complex numbers lack most operations.
        return [
            torch.view_as_complex(f if f.dtype == torch.float64 else f.float())
            for f in self.factors
        ]

    def forward(
        self,
        x: Tensor,  # shape: (T, B, input_size), or (T, B) of integers below input_size
        h0: Optional[Tensor] = None,  # shape: (1, B, output_size)
        lengths: Optional[Tensor] = None,  # shape: (B,)
        need_output: bool = True,
    ) -> Tuple[Optional[Tensor], Tensor]:  # shapes: (T, B, output_size), (1, B, output_size)
        """The state after every step, and the last one, as `torch.nn.RNN` returns them.

        Args:
            x: features, or symbols that each pick their row of the input weights.
            h0: state to start from; default the learned one.
            lengths: steps that count in each sequence; a finished one keeps its last state.
            need_output: False if the last state is all that is wanted; the output then is None, and
                less memory is written.

        Raises:
            ValueError: sizes that do not fit.
            RuntimeError: `check_finite` found a NaN or an infinity; the message names the step.
        """
        x = x.transpose(0, 1) if self.batch_first else x
        start = self.h0.expand(x.shape[1], -1) if h0 is None else h0.squeeze(0)
        output, h_n = self._run(x, start, lengths, need_output)
        if self.check_finite and not bool(h_n.isfinite().all()):
            self._report_step(x, start, lengths)
        if output is not None and self.batch_first:
            output = output.transpose(0, 1)
        return output, h_n.unsqueeze(0)

    def _run(
        self, x: Tensor, start: Tensor, lengths: Optional[Tensor], need_output: bool
    ) -> Tuple[Optional[Tensor], Tensor]:
        return kron_rnn(
            x,
            self.matrices(),
            self.bias,
            start,
            lengths,
            weight=self.weight,
            activation=self.activation,
            need_output=need_output,
            checkpoint_every=self.checkpoint_every,
            backend=self.backend,
        )

    @torch.no_grad()
    def _report_step(self, x: Tensor, start: Tensor, lengths: Optional[Tensor]) -> None:
        """What is not finite stays so to the end; run again to see where it began."""
        output, _ = self._run(x, start, lengths, need_output=True)
        step = int((~output.isfinite()).flatten(1).any(1).nonzero()[0])
        raise RuntimeError(f"KRU: the state holds a NaN or an infinity after step {step}")

    def unitary_penalty(self) -> Tensor:
        """Σ_f ‖W_fᴴ W_f − I‖_F², to be added to the loss with a weight λ."""
        return unitary_penalty(self.matrices())

    def unitary_deviation(self) -> Tensor:
        """max_f ‖W_fᴴ W_f − I‖_F."""
        return unitary_deviation(self.matrices())

    def singular_values(self) -> Tensor:
        """All N singular values of W, largest first."""
        return singular_values(self.matrices())

    def recurrent_parameters(self) -> int:
        """How many real numbers describe W: 8·log2 N for 2x2 complex factors."""
        return sum(factor.numel() for factor in self.factors)

    def extra_repr(self) -> str:
        kind = "complex" if self.complex else "real"
        return (
            f"{self.input_size}, {self.hidden_size}, factors={format_factors(self.factor_sizes)!r},"
            f" {kind}, activation={self.activation!r},"
            f" recurrent_parameters={self.recurrent_parameters()}"
        )
