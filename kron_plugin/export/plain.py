"""A trained model in plain real operators, which every exchange format has.

States are [Re h ; Im h], as everywhere. Only products take pairs, (B, N, C) with C = 2, or C = 1
for real layers, so that the pair is beside the digit to multiply.
"""

from copy import deepcopy
from typing import Callable, Dict, List, Sequence, Tuple

import torch
from torch import Tensor, nn

from ..modules.layer import KronLayer, State
from ..ops.kron.reference import dense
from ..trained import Trained

MOST_ROWS = 16  # of neighbouring factors that become one: calls take longer than small products


class Plain(nn.Module):
    """The layers and the readout of a model, in evaluation and in float32.

    parts: the names of the parts of a state.
    start: the initial state, shape (S, layers, 1, W).
    """

    start: Tensor

    @torch.no_grad()
    def __init__(self, model: Trained) -> None:
        super().__init__()
        layers: List[KronLayer] = list(model.cell.layers)  # type: ignore[arg-type]
        self.parts: Tuple[str, ...] = layers[0].recurrence.cell.state
        self.per_step: bool = model.task.spec.per_step
        self.tokens: bool = model.task.spec.tokens
        self.input_size: int = model.cell.input_size
        self.layers = nn.ModuleList(PlainLayer(layer) for layer in layers)
        self.readout = deepcopy(model.readout)
        starts = [torch.stack(layer.initial_state(1)) for layer in layers]
        self.register_buffer("start", torch.stack(starts, dim=1))
        self.float().cpu().eval().requires_grad_(False)

    def initial_state(self, batch: int) -> State:  # shape: (layers, B, W) each
        """The state before the first input."""
        return tuple(part.repeat(1, batch, 1) for part in self.start)

    def advance(
        self,
        x_t: Tensor,  # shape: (B, input_size), or (B,) of integers
        state: State,  # shape: (layers, B, W) each
    ) -> State:  # shape: (layers, B, W) each
        """The state after one more input."""
        after, by_layer = [], zip(*map(torch.unbind, state), strict=True)
        for layer, before in zip(self.layers, by_layer, strict=True):
            after.append(layer(x_t, before))
            x_t = after[-1][0]
        return tuple(map(torch.stack, zip(*after, strict=True)))


class PlainLayer(nn.Module):
    """One step of one layer. Its `step` is that of the cell itself, which is written with real
    tensors; complex ones need a form of their own."""

    weight: Tensor
    bias: Tensor

    def __init__(self, layer: KronLayer) -> None:
        super().__init__()
        self.pair = 2 if layer.complex else 1
        self.step = layer.recurrence.cell.step
        self.activation = layer.activation
        self.products = nn.ModuleList(
            Product(factors, layer.hidden_size, self.pair) for factors in layer.products()
        )
        self.register_buffer("weight", layer.weight.detach())
        self.register_buffer("bias", layer.offsets().detach())

    def forward(self, x: Tensor, state: State) -> State:  # shape: (B, W) each
        """The state after one more input."""
        u = x @ self.weight if x.is_floating_point() else nn.functional.embedding(x, self.weight)
        if self.pair == 2:
            (product,), (h,) = self.products, state
            pairs = product(h.unflatten(1, (2, -1)).transpose(1, 2))
            return (SPLIT[self.activation](pairs.transpose(1, 2).flatten(1) + u, self.bias),)
        recurrent = [product(state[0].unsqueeze(2)).squeeze(2) for product in self.products]
        return self.step(recurrent, u.chunk(len(recurrent), 1), self.bias, state, self.activation)


class Product(nn.Module):
    """W h for a Kronecker product W, factor after factor, the last first: each round multiplies the
    last digit of the index, beside the pair, and moves the result to the front."""

    def __init__(self, factors: Sequence[Tensor], size: int, pair: int) -> None:
        super().__init__()
        matrices = [real_form(factor, pair) for factor in merged(factors)]
        self.matrices = nn.ParameterList(
            nn.Parameter(matrix, requires_grad=False) for matrix in reversed(matrices)
        )
        self.size, self.pair = size, pair

    def forward(self, h: Tensor) -> Tensor:  # shape: (B, N, C)
        size = self.size
        for matrix in self.matrices:
            q, p = (length // self.pair for length in matrix.shape)
            h = h.reshape(-1, q * self.pair) @ matrix
            h = h.reshape(-1, size // q, p, self.pair).transpose(1, 2)
            size = size // q * p
        return h.reshape(-1, self.size, self.pair)


def merged(factors: Sequence[Tensor]) -> List[Tensor]:
    """The same Kronecker product by fewer factors, none above MOST_ROWS that was not."""
    result: List[Tensor] = []
    for factor in factors:
        factor = factor.detach().to(torch.complex128 if factor.is_complex() else torch.float64)
        if result and max(result[-1].shape) * max(factor.shape) <= MOST_ROWS:
            factor = dense([result.pop(), factor])
        result.append(factor)
    return result


def real_form(
    factor: Tensor,  # shape: (P, Q)
    pair: int,
) -> Tensor:  # shape: (Q · C, P · C)
    """The matrix that multiplies rows of numbers, or of pairs, by a factor from the right."""
    if pair == 1:
        return factor.t().contiguous()
    entries = torch.view_as_real(torch.stack([factor, 1j * factor], dim=-1))  # shape: (P, Q, 2, 2)
    return entries.permute(1, 2, 0, 3).reshape(2 * factor.shape[1], 2 * factor.shape[0])


def modrelu(
    z: Tensor,  # shape: (B, 2N)
    bias: Tensor,  # shape: (N,)
) -> Tensor:  # shape: (B, 2N)
    """`ops.modrelu`. A scale times 0 is 0, so z = 0 needs no other case than its divisor."""
    z = z.unflatten(1, (2, -1))
    modulus = torch.linalg.vector_norm(z, dim=1, keepdim=True)
    divisor = torch.where(modulus == 0, torch.ones_like(modulus), modulus)
    return (torch.relu(modulus + bias) / divisor * z).flatten(1)


# The activations of complex layers, on [Re z ; Im z]; real layers take those of the cell.
SPLIT: Dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "modrelu": modrelu,
    "identity": torch.add,
}
