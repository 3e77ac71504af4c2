"""What a recurrent cell is: the definition of its step, and what its backends must know."""

from typing import Callable, Mapping, NamedTuple, Sequence, Tuple

import torch
from torch import Tensor

State = Tuple[Tensor, ...]  # shape: (B, W) each


class Activation(NamedTuple):
    """A nonlinearity that a cell offers.

    function: (z, bias), of shape (B, N) and of the size `bias_size`, to h of shape (B, N).
    is_real: whether it is for real factors only.
    moves_moduli: whether the bias is added to moduli; it is then real for complex factors too.
    """

    function: Callable[[Tensor, Tensor], Tensor] = torch.add
    is_real: bool = False
    moves_moduli: bool = False


class Cell(NamedTuple):
    """One step from a state to the next by products W_k h, W_k a Kronecker product.

    name: `kron_NAME` is the recurrence; `cells/NAME.h` and `cells/NAME.cuh` are for its kernels.
    state: the parts of the state. The first one is the output, and the W_k multiply it.
    step: the definition, (W_k h for all k, u_k for all k, bias, state, activation) to the next
        state. All but the bias are (B, N), and complex if factors are.
    gates: a letter for each product; none if there is only one product.
    biases: how many numbers the bias has per unit: one for each u_k, then for a last W_k h.
    activations: the nonlinearities by name, in the order of their numbers in the kernels.
    is_real: whether factors have to be real.
    from_output: whether the output is all of the state, and the nonlinearity's derivative follows
        from it, so that kernels need not compute W h again in the backward pass.
    splits: whether the gradients of u_k and of W_k h differ.
    has_butterfly: whether there are CUDA kernels for 2x2 factors (cuda/butterfly.cu).
    """

    name: str
    state: Tuple[str, ...]
    step: Callable[[Sequence[Tensor], Sequence[Tensor], Tensor, State, str], State]
    gates: str = ""
    biases: int = 1
    activations: Mapping[str, Activation] = {"": Activation()}
    is_real: bool = True
    from_output: bool = False
    splits: bool = False
    has_butterfly: bool = False

    @property
    def operation(self) -> str:
        """The name of the recurrence."""
        return f"kron_{self.name}"

    @property
    def products(self) -> int:
        """K, how many recurrent matrices there are."""
        return max(1, len(self.gates))

    def bias_size(self, n: int, is_complex: bool, activation: str) -> int:
        """How many numbers the bias has."""
        is_split = is_complex and not self.activations[activation].moves_moduli
        return self.biases * n * (2 if is_split else 1)
