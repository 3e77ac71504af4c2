"""An LSTM whose four recurrent matrices are Kronecker products, used like `torch.nn.LSTM`."""

from math import sqrt
from typing import Any, List, Optional, Tuple, Union

import torch
from torch import Tensor, nn

from ..ops import kron_lstm
from ..ops.backends import compute_type
from ..ops.cells.lstm import recurrence
from .arguments import by_name, flag, place, whole
from .factors import FactorSpec
from .layer import KronLayer, State
from .stack import RecurrentStack

GATES = 4  # input, forget, cell, output: torch's order


@torch.no_grad()
def chrono_(bias: Tensor, steps: int) -> Tensor:
    """Fill the biases of forget gates with log U[1, steps − 1]. A gate at σ(b) forgets in
    1 + exp(b) steps, so memories last from 1 to `steps` steps, evenly (the chrono initialisation
    of Tallec and Ollivier, ICLR 2018)."""
    drawn = torch.empty_like(bias, dtype=compute_type(bias.dtype)).uniform_(1, steps - 1)
    return bias.copy_(drawn.log_())


class KRULSTM(RecurrentStack):
    """An LSTM with W_k = W_{k,0} ⊗ … ⊗ W_{k,F-1} in each gate k (Jose, Cissé, Fleuret, 2018).

    ::

        lstm = KRULSTM(input_size=50, hidden_size=512)       # 4·9 real 2x2 factors, 144 numbers
        output, (h_n, c_n) = lstm(torch.randn(100, 16, 50))  # (100, 16, 512), (1, 16, 512) twice

    Args:
        factors: sizes whose products are N, the same for every gate; as for `KRU`.
        bias: False removes the biases of all gates.
        unitary: as for `KRU`. The default has no penalty: gates keep gradients in bounds.
        chrono: the longest expected dependency in steps; units start with memories of 1 to
            `chrono` steps (`chrono_`). Default: the bias of every forget gate starts at 1.

    The other arguments are those of `KRU`. Factors are real and start orthogonal. States start at
    0, as those of `torch.nn.LSTM`.

    Raises:
        ValueError, TypeError: as `KRU`.
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
        unitary: str = "none",
        chrono: Optional[int] = None,
        batch_first: bool = False,
        backend: str = "auto",
        checkpoint_every: int = 1,
        check_finite: bool = False,
        device: Union[str, torch.device, None] = None,
        dtype: Optional[torch.dtype] = None,
    ) -> None:
        by_name("KRULSTM", unnamed)

        def make_layer(features: int) -> KRULSTMLayer:
            return KRULSTMLayer(
                features,
                hidden_size,
                factors,
                bias=bias,
                chrono=chrono,
                unitary=unitary,
                backend=backend,
                checkpoint_every=checkpoint_every,
                check_finite=check_finite,
                device=device,
                dtype=dtype,
            )

        options = (num_layers, bidirectional, dropout, batch_first)
        super().__init__(make_layer, input_size, *options)


class KRULSTMLayer(KronLayer):
    """One layer of `KRULSTM` in one direction.

    Parameters: `factors`, gate after gate; `weight` (input_size, 4N) and `bias` (4N,), with the
    columns gate after gate.
    """

    state_parts = 2

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        factors: FactorSpec = None,
        *,
        bias: bool,
        chrono: Optional[int],
        device: Union[str, torch.device, None],
        dtype: Optional[torch.dtype],
        **options: Any,
    ) -> None:
        where = place(device, dtype)
        if chrono is not None:
            chrono = whole("chrono", chrono, 2, "steps")
        if not flag("bias", bias) and chrono is not None:
            raise ValueError(f"chrono={chrono}: sets the biases that bias=False leaves out")
        super().__init__(
            input_size, hidden_size, factors, products=GATES, complex=False, **where, **options
        )
        self.chrono = chrono
        width = GATES * self.hidden_size
        self.weight = nn.Parameter(torch.empty(self.input_size, width, **where))
        self.bias = nn.Parameter(torch.empty(width, **where)) if bias else None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        super().reset_parameters()
        bound = 1 / sqrt(self.hidden_size)
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is None:
            return
        nn.init.zeros_(self.bias)
        of_input, of_forget, _, _ = self.bias.chunk(GATES)
        if self.chrono is not None:
            chrono_(of_forget, self.chrono)
            of_input.copy_(-of_forget)
        else:  # remember at first (Jozefowicz, Zaremba, Sutskever, ICML 2015)
            of_forget.fill_(1)

    def initial_state(self, batch: int) -> State:
        zeros = self.weight.new_zeros(batch, self.hidden_size)
        return zeros, zeros

    def run(
        self, x: Tensor, state: State, lengths: Optional[Tensor], need_output: bool
    ) -> Tuple[Tensor, State]:
        matrices, count = self.matrices(), len(self.factor_sizes)
        return kron_lstm(
            x,
            [matrices[k * count : (k + 1) * count] for k in range(GATES)],
            self.offsets(),
            (state[0], state[1]),
            lengths,
            weight=self.weight,
            need_output=need_output,
            checkpoint_every=self.checkpoint_every,
            backend=self.backend,
        )

    def available_backends(self) -> List[str]:
        return recurrence.available(self.weight.device, self.weight.dtype)
