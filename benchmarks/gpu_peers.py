"""The candidates of `gpu.py bench` that are no special ones of a GPU."""

from functools import partial
from typing import Callable, Dict, List, NamedTuple

import torch
from peers import PRODUCTS, orthogonal_rnn, random_factors
from tabulate import tabulate
from torch import Tensor, nn

from kron_plugin.modules import KRULSTM
from kron_plugin.ops import kron_rnn


class Setting(NamedTuple):
    batch: int
    steps: int
    size: int


SETTINGS = [Setting(128, 784, 512), Setting(20, 1000, 128)]
PRODUCT = (4096, 512)  # vectors, size


def unitary_factors(size: int, device: str) -> List[Tensor]:
    """log2(size) random unitary 2x2 matrices, which require gradients."""
    return [w.requires_grad_() for w in random_factors(size, torch.complex64, device)]


def kru_step(
    setting: Setting, device: str, backend: str, dtype: torch.dtype = torch.float32, **options
) -> Callable[[], None]:
    """One forward and backward pass of the recurrence; `dtype` is that of inputs and states."""
    width = 2 * setting.size
    factors = unitary_factors(setting.size, device)
    weight = torch.randn(1, width, device=device, dtype=dtype, requires_grad=True)
    bias = torch.full((setting.size,), -0.01, device=device, dtype=dtype, requires_grad=True)
    h0 = torch.zeros(setting.batch, width, device=device, dtype=dtype)
    x = torch.rand(setting.steps, setting.batch, 1, device=device, dtype=dtype)
    gradient = torch.randn(setting.steps, setting.batch, width, device=device, dtype=dtype)

    def run() -> None:
        states, _ = kron_rnn(x, factors, bias, h0, weight=weight, backend=backend, **options)
        states.backward(gradient)

    return run


def layer_step(
    layer: nn.Module, setting: Setting, device: str, dtype: torch.dtype = torch.float32
) -> Callable[[], None]:
    """The same for a layer called like torch.nn.RNN."""
    layer = layer.to(device, dtype)
    x = torch.rand(setting.steps, setting.batch, 1, device=device, dtype=dtype)
    gradient = torch.randn_like(layer(x)[0])

    def run() -> None:
        layer(x)[0].backward(gradient)

    return run


def recurrences(setting: Setting, device: str) -> Dict[str, Callable[[], None]]:
    candidates = {
        "KRU": kru_step(setting, device, device),
        "KRU checkpoint_every=28": kru_step(setting, device, device, checkpoint_every=28),
        "KRU reference": kru_step(setting, device, "reference"),
    }
    candidates["KRU-LSTM"] = layer_step(KRULSTM(1, setting.size, backend=device), setting, device)
    for size in sorted({setting.size, 128}, reverse=True):
        candidates[f"LSTM({size})"] = layer_step(nn.LSTM(1, size), setting, device)
    for kind in (nn.GRU, nn.RNN):
        candidates[f"{kind.__name__}({setting.size})"] = layer_step(
            kind(1, setting.size), setting, device
        )
    name = f"orthogonal RNN({setting.size})"
    candidates[name] = layer_step(orthogonal_rnn(1, setting.size), setting, device)
    return candidates


def products(device: str) -> Dict[str, Callable[[], Tensor]]:
    """The real Kronecker product W x alone, forward, for us and the installed peers."""
    vectors, size = PRODUCT
    factors = random_factors(size, torch.float32, device)
    x = torch.randn(vectors, size, device=device)
    zeros = torch.zeros(1, vectors, size, device=device)
    no_bias = torch.zeros(size, device=device)
    candidates = {
        "KRU, one step": lambda: kron_rnn(
            zeros, factors, no_bias, x, activation="identity", need_output=False, backend=device
        ),
        **{name: partial(product, x, factors) for name, product in PRODUCTS.items()},
    }
    return {name: torch.no_grad()(run) for name, run in candidates.items()}


def table(title: str, seconds: Dict[str, float]) -> List[dict]:
    """Print and return a row for each candidate, with its time relative to the first one's."""
    first = next(iter(seconds.values()))
    rows = [
        {"setting": title, "what": name, "ms": 1000 * time, "times KRU": time / first}
        for name, time in seconds.items()
    ]
    print(f"\n{title}")
    print(tabulate(rows, headers="keys", floatfmt=("", "", ".2f", ".2f")), flush=True)
    return rows
