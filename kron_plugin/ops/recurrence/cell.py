"""What a recurrent cell is: the definition of its step, and what its backends must know of it."""

from typing import Callable, Mapping, NamedTuple, Sequence, Tuple

import torch
from torch import Tensor

State = Tuple[Tensor, ...]  # shape: (B, W) each


class Activation(NamedTuple):
    """A nonlinearity that a cell lets choose.

    function: (z, bias), of shapes (B, N) and as `bias_size` says, to h of shape (B, N).
    is_real: whether it is for real factors only.
    moves_moduli: whether the bias is added to moduli, so that it is real for complex factors too.
    """

    function: Callable[[Tensor, Tensor], Tensor] = torch.add
    is_real: bool = False
    moves_moduli: bool = False


class Cell(NamedTuple):
    """One step from a state to the next by products W_k h, W_k a Kronecker product.

    name: `kron_NAME` is the recurrence; `cells/NAME.h` and `cells/NAME.cuh` are its kernels' part.
    state: the parts of the state. The first one is the output, and what the W_k multiply.
    step: the definition, (W_k h for all k, u_k for all k, bias, state, activation) to the next
        state. All are (B, N) but the bias, and complex where factors are.
    gates: a letter for each product; none where there is one product alone.
    biases: how many numbers a unit has in the bias.
    activations: the nonlinearities by name, in the order of the kernels' enum Activation.
    is_real: whether factors have to be real.
    from_output: whether the output is all of the state, and tells the derivative of the
        nonlinearity, so that kernels need not make W h again on the way back.
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
