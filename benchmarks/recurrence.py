"""KRU beside its peers: seconds forward and backward, side by side in one process.

    python benchmarks/recurrence.py [--json FILE]      on the CPU; gpu.py times the GPU

Each recurrent layer reads one scalar a step and receives a random gradient at every output. A
gradient from the last state alone shrinks on its way, and some processors compute a hundred times
slower with numbers that are almost 0. The Kronecker product alone is timed on a batch of vectors,
against linear_operator and pyfastkron where they are installed (`pip install -e .[bench]`).
"""

import argparse
import json
from typing import Callable, Dict, List, NamedTuple

import torch
from tabulate import tabulate
from timing import interleave, machine, peak_memory, peak_multiply_adds
from torch import Tensor, nn

from kron_plugin.modules import KRULSTM
from kron_plugin.ops import kron_matmul, kron_rnn


class Setting(NamedTuple):
    batch: int
    steps: int
    size: int


SETTINGS = [Setting(128, 784, 512), Setting(20, 1000, 128)]
PRODUCT = (4096, 512)  # vectors, size


def unitary_factors(size: int, device: str) -> List[Tensor]:
    """log2(size) random unitary 2x2 matrices, which require gradients."""
    count = size.bit_length() - 1
    random = torch.randn(count, 2, 2, dtype=torch.complex64, device=device)
    return [q.contiguous().requires_grad_() for q in torch.linalg.qr(random)[0]]


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


def orthogonal_rnn(size: int) -> nn.Module:
    """An RNN whose recurrent matrix is kept orthogonal by torch's own parametrization."""
    layer = nn.RNN(1, size)
    return nn.utils.parametrizations.orthogonal(layer, "weight_hh_l0")


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
    candidates[name] = layer_step(orthogonal_rnn(setting.size), setting, device)
    return candidates


def kru_cost(setting: Setting) -> Dict[str, float]:
    """The work of one forward and backward pass, as recurrence.cpp derives it.

    multiply_adds: real ones, for W h, W^H and the factors' gradients. A complex one is four real
    ones; a 2x2 stage needs one complex one an element (and one more for all of the diagonals).
    textbook: the same without the two shortcuts, with stages computed again. bytes: of states,
    written and read again, and of their gradients, read.
    """
    states = setting.batch * setting.steps * setting.size
    count = setting.size.bit_length() - 1
    return {
        "multiply_adds": 4.0 * states * 3 * (count + 1),
        "textbook_multiply_adds": 4.0 * states * 8 * count,
        "bytes": 3.0 * 8 * states,
    }


def products(device: str) -> Dict[str, Callable[[], None]]:
    """The real Kronecker product W x alone, forward, for us and the installed peers."""
    vectors, size = PRODUCT
    factors = [torch.randn(2, 2, device=device) for _ in range(size.bit_length() - 1)]
    x = torch.randn(vectors, size, device=device)
    zeros = torch.zeros(1, vectors, size, device=device)
    no_bias = torch.zeros(size, device=device)
    candidates = {
        "KRU, one step": lambda: kron_rnn(
            zeros, factors, no_bias, x, activation="identity", need_output=False, backend=device
        ),
        "kron_matmul": lambda: kron_matmul(x, factors),
    }
    try:
        from linear_operator.operators import KroneckerProductLinearOperator

        operator = KroneckerProductLinearOperator(*factors)
        candidates["linear_operator"] = lambda: operator.matmul(x.T)
    except ImportError as error:
        print(f"linear_operator is left out: {error}")
    try:
        from pyfastkron import fastkrontorch

        transposed = [w.T.contiguous() for w in factors]
        candidates["pyfastkron"] = lambda: fastkrontorch.gemkm(x, transposed)
    except (ImportError, OSError) as error:  # OSError: a CUDA library is missing
        print(f"pyfastkron is left out: {error}")

    def without_gradient(run: Callable[[], object]) -> Callable[[], None]:
        def call() -> None:
            with torch.no_grad():
                run()

        return call

    return {name: without_gradient(run) for name, run in candidates.items()}


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", help="write the numbers to this file too")
    args = parser.parse_args()
    torch.manual_seed(0)
    peak = peak_multiply_adds()
    print(f"{machine()}; {2 * peak / 1e9:.0f} GFLOP/s (float32) at best")
    rows: List[dict] = []
    for setting in SETTINGS:
        seconds = interleave(recurrences(setting, "cpu"), args.rounds)
        title = f"B={setting.batch} T={setting.steps} N={setting.size}, forward and backward"
        rows += table(title, seconds)
        cost = kru_cost(setting)
        floor = cost["multiply_adds"] / peak
        rows[-len(seconds)].update(cost, floor_ms=1000 * floor, share=floor / seconds["KRU"])
        print(
            f"KRU: {2 * cost['multiply_adds'] / 1e9:.1f} GFLOP (textbook"
            f" {2 * cost['textbook_multiply_adds'] / 1e9:.1f}), {cost['bytes'] / 1e6:.0f} MB of"
            f" states and gradients; floor {1000 * floor:.1f} ms,"
            f" {100 * floor / seconds['KRU']:.0f}% of it reached;"
            f" peak memory of the process {peak_memory():.0f} MiB"
        )
    vectors, size = PRODUCT
    rows += table(f"real W x, {vectors} vectors, N={size}", interleave(products("cpu"), 20))
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump({"machine": machine(), "peak_multiply_adds": peak, "rows": rows}, file)


if __name__ == "__main__":
    main()
