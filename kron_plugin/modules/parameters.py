"""Parameters with group marks, and the factors, which only their owner reads."""

from typing import Any, Dict, Iterable, List, Optional, Union

import torch
from torch import Tensor, nn

from ..ops.backends import compute_type
from .unitary import alike, unitary_


class GroupedParameters(nn.Module):
    """Marks its own parameters with `param_group`, by which fairseq's optimisers tell groups apart.
    Copies and replacements of the parameters are marked too."""

    def group_of(self, name: str) -> Optional[str]:
        """The group of a parameter, or None."""
        raise NotImplementedError

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if isinstance(value, nn.Parameter):
            self._mark()

    def _mark(self) -> None:
        parameters: Dict[str, Any] = self._parameters
        for name, parameter in parameters.items():
            group = self.group_of(name)
            if group is not None and parameter is not None:
                parameter.param_group = group

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        self._mark()

    def _apply(self, *args: Any, **kwargs: Any) -> "GroupedParameters":
        super()._apply(*args, **kwargs)
        self._mark()
        return self


class FactorList(GroupedParameters, nn.ParameterList):
    """The trained parameters of the factors, in the group "factors". A call returns the matrices.

    Libraries that shard or offload parameters restore them only around a call of the module that
    owns them; those that delay making them call its `reset_parameters`. So code that needs the
    factors calls this module.

    Args:
        factors: real parameters of shape (P_f, Q_f), or (P_f, Q_f, 2) for `complex`.
        zero: start from 0, for `UnitaryMap`, instead of from unitary matrices.
        angle: of the unitary matrices, as `unitary_` takes it.
    """

    __call__ = nn.Module.__call__  # a ParameterList refuses calls

    def __init__(
        self,
        factors: Iterable[nn.Parameter] = (),
        *,
        complex: bool = False,
        zero: bool = False,
        angle: Optional[float] = None,
    ) -> None:
        super().__init__(factors)
        self.complex = complex
        self.zero = zero
        self.angle = angle

    def __getitem__(self, index: Any) -> Any:
        found = super().__getitem__(index)
        if isinstance(found, FactorList):
            found.complex, found.zero, found.angle = self.complex, self.zero, self.angle
        return found

    def group_of(self, name: str) -> str:
        return "factors"

    @torch.no_grad()
    def reset_parameters(self) -> None:
        for factor in self:
            factor.zero_() if self.zero else fill_unitary(factor, self.complex, self.angle)

    def forward(self, flat: bool = False) -> Union[Tensor, List[Tensor]]:
        """The factors as matrices, shape (P_f, Q_f) each and complex if the layer is, or all real
        numbers in one vector if `flat`; in single precision at least. They are copies: FSDP and
        others free the parameters' memory when the call ends.

        Raises:
            RuntimeError: FSDP keeps them in shards, and the caller is not a module that it wraps.
        """
        names, own = [str(f) for f in range(len(self))], self._parameters
        # The table is several times faster than `self[f]`, but does not hold what replaces them.
        factors = [_whole(own[f] if f in own else getattr(self, f)) for f in names]
        self._check_whole(factors)
        # Half precision lacks most operations on complex numbers, and digits for a penalty.
        if flat:
            numbers = torch.cat([f.reshape(-1) for f in factors])
            return numbers.to(compute_type(numbers.dtype))
        matrices: List[Tensor] = [*factors]
        for places in alike(factors):
            made = torch.stack([factors[i] for i in places])
            made = made.to(compute_type(made.dtype))
            made = torch.view_as_complex(made) if self.complex else made
            for i, matrix in zip(places, made, strict=True):
                matrices[i] = matrix
        return matrices

    def _check_whole(self, factors: List[Tensor]) -> None:
        """FSDP either replaces parameters by flat shards (`use_orig_params`), or removes them and
        leaves views of freed memory. Reading such a view ends the process."""
        is_flat = any(factor.dim() != 2 + self.complex for factor in factors)
        taken = not self._parameters
        if is_flat or (taken and any(not f.untyped_storage().size() for f in factors)):
            raise RuntimeError(
                "factors: FSDP keeps them in shards between the calls of what it wraps; let it"
                " wrap every FactorList by itself, or use fully_shard"
            )


@torch.no_grad()
def fill_unitary(
    matrix: Tensor,  # shape: (P, Q), or (P, Q, 2) for a complex one
    complex: bool,
    angle: Optional[float],
) -> None:
    """Fill a real tensor with a random unitary matrix by `unitary_`."""
    # The tensor may be in half precision or in shards, so another tensor is filled first.
    dtype = compute_type(matrix.dtype)
    made = torch.empty(
        matrix.shape[:2], dtype=dtype.to_complex() if complex else dtype, device=matrix.device
    )
    unitary_(made, angle)
    _copy(torch.view_as_real(made) if complex else made, matrix)


def _whole(tensor: Any) -> Tensor:
    """The whole tensor, if `fully_shard` keeps shards of it in several processes between the calls
    of a model. Its gradient is in shards again."""
    is_plain = type(tensor) is nn.Parameter or not hasattr(tensor, "full_tensor")
    return tensor if is_plain else tensor.full_tensor()


def _copy(source: Tensor, into: Any) -> None:
    """Copy into a tensor that may be in shards; all processes get the first one's numbers."""
    if hasattr(into, "full_tensor"):
        from torch.distributed.tensor import distribute_tensor

        source = distribute_tensor(source, into.device_mesh, into.placements)
    into.copy_(source)
