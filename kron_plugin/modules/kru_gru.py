"""A GRU whose three recurrent matrices are Kronecker products, used like `torch.nn.GRU`."""

from typing import List

from torch import Tensor

from ..ops.cells import gru
from .gated import GatedLayer, GatedStack


class KRUGRULayer(GatedLayer):
    """One layer of `KRUGRU` in one direction. Its bias has four parts: b_r, b_z, b_n, b_h."""

    recurrence = gru.recurrence

    def gates_of(self, bias: Tensor) -> List[Tensor]:
        return [bias.chunk(4)[1]]


class KRUGRU(GatedStack):
    """A GRU with W_k = W_{k,0} ⊗ … ⊗ W_{k,F-1} in each gate k.

    ::

        gru = KRUGRU(input_size=50, hidden_size=512)   # 3·9 real 2x2 factors, 108 numbers
        output, h_n = gru(torch.randn(100, 16, 50))    # (100, 16, 512), (1, 16, 512)

    The arguments are those of `KRULSTM`; the gate z, which keeps the state, takes the part of the
    forget gate. Factors are real and start orthogonal. The state starts at 0.

    Raises:
        ValueError, TypeError: as `KRU`.
    """

    title = "KRU-GRU"
    layer_type = KRUGRULayer
