"""An LSTM whose four recurrent matrices are Kronecker products, used like `torch.nn.LSTM`."""

from typing import List

from torch import Tensor

from ..ops.cells import lstm
from .gated import GatedLayer, GatedStack


class KRULSTMLayer(GatedLayer):
    """One layer of `KRULSTM` in one direction."""

    recurrence = lstm.recurrence

    def gates_of(self, bias: Tensor) -> List[Tensor]:
        lets_in, keeps, _, _ = bias.chunk(4)
        return [keeps, lets_in]


class KRULSTM(GatedStack):
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

    title = "KRU-LSTM"
    layer_type = KRULSTMLayer
