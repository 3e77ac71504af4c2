"""What recurrent layers with gates share: their arguments, their biases, a start at 0."""

from math import sqrt
from typing import Any, List, Optional, Type, Union

import torch
from torch import Tensor, nn

from ..ops.backends import compute_type
from .arguments import by_name, flag, place, whole
from .factors import FactorSpec
from .layer import KronLayer, State
from .stack import RecurrentStack


@torch.no_grad()
def chrono_(bias: Tensor, steps: int) -> Tensor:
    """Fill the biases of forget gates with log U[1, steps − 1]. A gate at σ(b) forgets in
    1 + exp(b) steps, so memories last from 1 to `steps` steps, evenly (the chrono initialisation
    of Tallec and Ollivier, ICLR 2018)."""
    drawn = torch.empty_like(bias, dtype=compute_type(bias.dtype)).uniform_(1, steps - 1)
    return bias.copy_(drawn.log_())


class GatedLayer(KronLayer):
    """One layer in one direction whose gates have real factors.

    Parameters: `factors`, gate after gate; `weight` (input_size, gates · N), with the columns gate
    after gate; `bias`, whose shape the cell tells. A subclass defines `gates_of`.
    """

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
        super().__init__(input_size, hidden_size, factors, complex=False, **where, **options)
        self.chrono = chrono
        cell, n = self.recurrence.cell, self.hidden_size
        self.weight = nn.Parameter(torch.empty(self.input_size, cell.products * n, **where))
        self.bias = nn.Parameter(torch.empty(cell.biases * n, **where)) if bias else None
        self.reset_parameters()

    def gates_of(self, bias: Tensor) -> List[Tensor]:
        """Of the parts of the bias, N numbers each, that of the gate that keeps the state, and
        that of the one that lets new values in, if there is one."""
        raise NotImplementedError

    @torch.no_grad()
    def reset_parameters(self) -> None:
        super().reset_parameters()
        bound = 1 / sqrt(self.hidden_size)
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is None:
            return
        nn.init.zeros_(self.bias)
        keeps, *lets_in = self.gates_of(self.bias)
        if self.chrono is None:  # remember at first (Jozefowicz, Zaremba, Sutskever, ICML 2015)
            keeps.fill_(1)
            return
        chrono_(keeps, self.chrono)
        for part in lets_in:
            part.copy_(-keeps)

    def initial_state(self, batch: int) -> State:
        return tuple(
            self.weight.new_zeros(batch, self.hidden_size) for _ in range(self.state_parts)
        )


class GatedStack(RecurrentStack):
    """Layers with gates upon each other; a subclass names its `layer_type`."""

    layer_type: Type[GatedLayer]

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
        by_name(type(self).__name__, unnamed)

        def make_layer(features: int) -> GatedLayer:
            return self.layer_type(
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
