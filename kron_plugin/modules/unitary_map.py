"""A matrix that stays unitary under any optimiser."""

from typing import Any, Callable, Optional, Union

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal

from ..ops import as_complex
from ..ops.backends import compute_type
from .parameters import fill_unitary


class UnitaryMap(nn.Module):
    """From any matrix X to a unitary one: exp(A) B, with A = tril(X) − tril(X)ᴴ and B fixed.

    B is random and unitary, so X = 0 gives a random unitary matrix. exp(A) is computed by torch's
    `parametrizations.orthogonal`, taken out of its module. That module would make the trained
    parameter complex, which fairseq's optimisers cannot hold, and could not be pickled.

    Args:
        rows, columns: of the matrix. A tall one gets orthonormal columns, a wide one rows.
        complex: complex matrices. Real ones keep the sign of B's determinant.
        angle: of B, as for `unitary_`.
        device: of B.
    """

    base: Tensor  # B

    def __init__(
        self,
        rows: int,
        columns: int,
        complex: bool,
        angle: Optional[float] = None,
        device: Union[str, torch.device, None] = None,
    ) -> None:
        super().__init__()
        dtype = compute_type(torch.get_default_dtype())
        owner: Any = nn.Module()
        owner.weight = nn.Parameter(
            torch.zeros(rows, columns, dtype=dtype.to_complex() if complex else dtype)
        )
        orthogonal(owner, "weight", "matrix_exp", use_trivialization=False)
        self.exponential: nn.Module = owner.parametrizations.weight[0]
        size, tail = max(rows, columns), (2,) if complex else ()
        # fairseq needs real buffers, like real parameters.
        base = torch.empty(size, size, *tail, dtype=torch.float64, device=device)
        self.register_buffer("base", base)
        self.complex = complex
        self.angle = angle
        self.reset_parameters()

    def _apply(self, fn: Callable, recurse: bool = True) -> "UnitaryMap":
        """Keep B in double precision; a rounded B would be unitary only to the lower one."""
        base = self.base
        super()._apply(fn, recurse)
        if self.base.dtype != torch.float64:
            self.base = base.to(self.base.device, torch.float64)
        return self

    def reset_parameters(self) -> None:
        """Draw another B."""
        fill_unitary(self.base, self.complex, self.angle)

    def forward(
        self,
        x: Tensor,  # shape: (P, Q)
    ) -> Tensor:  # shape: (P, Q)
        base = self.base.to(x.real.dtype)
        base = as_complex(base) if self.complex else base
        unitary = self.exponential(x)
        return base @ unitary if x.shape[0] >= x.shape[1] else unitary @ base
