"""What `recurrence.py` times: layers, single steps and products, ours and their peers'."""

from contextlib import suppress
from functools import partial
from types import MappingProxyType
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kron_plugin.modules import KRU, KRULSTM
from kron_plugin.modules.stack import RecurrentStack
from kron_plugin.ops import kron_matmul


class Candidate(NamedTuple):
    kind: str  # a key of KINDS or PRODUCTS
    size: int
    options: Mapping[str, Any] = MappingProxyType({})

    @property
    def name(self) -> str:
        options = "".join(f", {key}={value}" for key, value in self.options.items())
        return f"{self.kind}({self.size}{options})"


class Row(NamedTuple):
    """What is timed together, on the same inputs."""

    name: str
    form: str  # of inputs: "features", "one-hot", "tokens" (one-hot for peers), "step", "product"
    batch: int
    steps: int
    inputs: int
    candidates: Sequence[Candidate]
    # Of ours: how many times as fast as a peer.
    goals: Mapping[str, Dict[str, float]] = MappingProxyType({})
    dtype: torch.dtype = torch.float32


class Case(NamedTuple):
    """A candidate in a row."""

    call: Callable[[], Tensor]  # a forward pass
    leaves: Sequence[Tensor] = ()  # the backward pass computes their gradients
    gradient: Optional[Tensor] = None  # of the result; None: there is no backward pass
    layer: Optional[nn.Module] = None

    def forward(self) -> Tensor:
        with torch.no_grad():
            return self.call()

    def both(self) -> Tuple[Tensor, ...]:
        """Forward and backward."""
        return torch.autograd.grad(self.call(), self.leaves, self.gradient)


def tiny(row: Row) -> Row:
    """The same with next to no work."""
    return row._replace(batch=2, steps=3)


def make_case(row: Row, candidate: Candidate) -> Case:
    """Ready to run; the same inputs for every candidate."""
    torch.manual_seed(0)
    if row.form == "product":
        return _product(row, candidate)
    make = _step if row.form == "step" else _sequence
    return make(row, KINDS[candidate.kind], candidate)


def orthogonal_rnn(inputs: int, size: int) -> nn.Module:
    """An RNN whose recurrent matrix is kept orthogonal by torch's own parametrization."""
    layer = nn.RNN(inputs, size)
    return nn.utils.parametrizations.orthogonal(layer, "weight_hh_l0")


def _sequence(row: Row, make: Callable[..., nn.Module], candidate: Candidate) -> Case:
    """A layer over whole sequences."""
    symbols = torch.randint(row.inputs, (row.steps, row.batch))
    features = torch.rand(row.steps, row.batch, row.inputs)
    layer = make(row.inputs, candidate.size, **candidate.options)
    is_ours = isinstance(layer, RecurrentStack)
    x = features if row.form == "features" else F.one_hot(symbols, row.inputs).float()
    if row.form == "tokens" and is_ours:
        x = symbols
    width = layer.output_size if is_ours else layer.hidden_size
    gradient = torch.randn(row.steps, row.batch, width)
    return Case(lambda: layer(x)[0], list(layer.parameters()), gradient, layer)


def _step(row: Row, make: Callable[..., Any], candidate: Candidate) -> Case:
    """`row.steps` steps, one call each."""
    x = torch.rand(row.steps, row.batch, row.inputs)
    layer, begin = make(row.inputs, candidate.size)

    def call() -> Tensor:
        step = begin(row.batch)
        for x_t in x:
            last = step(x_t)
        return last

    return Case(call, layer=layer)


def kru_stream(inputs: int, size: int) -> Tuple[nn.Module, Callable]:
    """A layer, and what begins a sequence of so many rows: it returns the step."""
    layer = KRU(inputs, size)
    return layer, lambda batch: layer.stream(batch_size=batch)


def _with_state(layer: nn.Module, step: Callable) -> Tuple[nn.Module, Callable]:
    """The same, of a function of an input and the state before, or None."""

    def begin(batch: int) -> Callable[[Tensor], Any]:
        state = None

        def one(x_t: Tensor) -> Any:
            nonlocal state
            state = step(x_t, state)
            return state

        return one

    return layer, begin


def kru_step(inputs: int, size: int) -> Tuple[nn.Module, Callable]:
    layer = KRU(inputs, size)
    return _with_state(layer, layer.step)


def lstm_cell(inputs: int, size: int) -> Tuple[nn.Module, Callable]:
    layer = nn.LSTMCell(inputs, size)
    return _with_state(layer, layer)


KINDS: Dict[str, Callable[..., Any]] = {
    "KRU": KRU,
    "KRU-LSTM": KRULSTM,
    "LSTM": nn.LSTM,
    "GRU": nn.GRU,
    "RNN": nn.RNN,
    "orthogonal RNN": orthogonal_rnn,
    "KRU.stream": kru_stream,
    "KRU.step": kru_step,
    "LSTMCell": lstm_cell,
}

PRODUCTS: Dict[str, Callable[[Tensor, List[Tensor]], Tensor]] = {
    "kron_matmul": kron_matmul,
    "reference": partial(kron_matmul, backend="reference"),
}
with suppress(ImportError):
    from linear_operator.operators import KroneckerProductLinearOperator

    PRODUCTS["linear_operator"] = lambda x, w: KroneckerProductLinearOperator(*w).matmul(x.T).T
with suppress(ImportError, OSError):  # OSError: a CUDA library is missing
    from pyfastkron import fastkrontorch

    PRODUCTS["pyfastkron"] = lambda x, w: fastkrontorch.gemkm(x, [w_f.T for w_f in w])


def random_factors(size: int, dtype: torch.dtype, device: str = "cpu") -> List[Tensor]:
    """log2(size) random 2x2 matrices, orthogonal or unitary."""
    random = torch.randn(size.bit_length() - 1, 2, 2, dtype=dtype, device=device)
    return [q.contiguous() for q in torch.linalg.qr(random)[0]]


def _product(row: Row, candidate: Candidate) -> Case:
    """W x alone, for each of the batch."""
    x = torch.randn(row.batch, candidate.size, dtype=row.dtype)
    leaves = [x, *random_factors(candidate.size, row.dtype)]
    for leaf in leaves:
        leaf.requires_grad_()
    product = PRODUCTS[candidate.kind]
    return Case(lambda: product(x, leaves[1:]), leaves, torch.randn_like(x))
