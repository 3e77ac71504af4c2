"""Run kernels of every kind on small problems, for compute-sanitizer (gpu.py calls this)."""

from itertools import product
from math import prod
from typing import List

import torch
from torch import Tensor

from kron_plugin.ops import kron_matmul
from kron_plugin.ops.cells import gru, lstm, rnn

RECURRENCES = {"rnn": rnn.recurrence, "lstm": lstm.recurrence, "gru": gru.recurrence}
# Factor sizes for all types and forms of input.
EVERY_WAY = [[2] * 6, [2] * 9, [3, 5]]
SHAPES = [[2] * 2, [2, 2, 3, 16], [2] * 14, *EVERY_WAY]
STORED = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
FORMS = ["dense", "features", "tokens"]
STEPS, BATCH, INPUTS = 3, 5, 4
MANY = 400  # every block has several of these to sum


def random_input(form: str, batch: int, width: int, dtype: torch.dtype) -> dict:
    """x and weight."""
    weight = torch.randn(INPUTS, width, dtype=dtype, device="cuda", requires_grad=True)
    if form == "tokens":
        return {"x": torch.randint(INPUTS, (STEPS, batch), device="cuda"), "weight": weight}
    size = width if form == "dense" else INPUTS
    x = torch.randn(STEPS, batch, size, dtype=dtype, device="cuda", requires_grad=True)
    return {"x": x, "weight": None if form == "dense" else weight}


def random_factors(sizes: List[int], dtype: torch.dtype) -> List[Tensor]:
    return [(torch.randn(p, p, dtype=dtype, device="cuda") / p).requires_grad_() for p in sizes]


def run_recurrence(
    name: str,
    sizes: List[int],
    dtype: torch.dtype,
    form: str,
    is_complex: bool = False,
    batch: int = BATCH,
) -> None:
    recurrence = RECURRENCES[name]
    cell, n = recurrence.cell, prod(sizes)
    real = torch.float64 if dtype == torch.float64 else torch.float32
    element = real.to_complex() if is_complex else real
    factors = [random_factors(sizes, element) for _ in range(cell.products)]
    width, activation = (2 * n if is_complex else n), next(iter(cell.activations))
    bias_size = cell.bias_size(n, is_complex, activation)
    bias = torch.zeros(bias_size, dtype=dtype, device="cuda")
    state = tuple(torch.ones(batch, width, dtype=dtype, device="cuda") for _ in cell.state)
    lengths = 1 + torch.arange(batch, device="cuda") % STEPS
    for every, need_output in ((1, True), (2, False)):
        arguments = random_input(form, batch, cell.products * width, dtype)
        outputs, last = recurrence(
            *(arguments["x"], factors, bias, state, lengths),
            weight=arguments["weight"],
            activation=activation,
            checkpoint_every=every,
            need_output=need_output,
            backend="cuda",
        )
        sum(part.float().square().sum() for part in (outputs, *last)).backward()
    assert all(w.grad.isfinite().all() for product in factors for w in product)


def run_product(sizes: List[int], is_complex: bool) -> None:
    factors = random_factors(sizes, torch.complex64 if is_complex else torch.float32)
    vectors = torch.randn(MANY, prod(sizes), device="cuda")
    kron_matmul(vectors, factors, backend="cuda").abs().square().sum().backward()


def main() -> None:
    torch.manual_seed(0)
    for sizes in SHAPES:
        ways = product(STORED, FORMS) if sizes in EVERY_WAY else [(torch.float32, "features")]
        for is_complex in (True, False):
            run_product(sizes, is_complex)
        for dtype, form in ways:
            for name in RECURRENCES:
                run_recurrence(name, sizes, dtype, form)
            run_recurrence("rnn", sizes, dtype, form, is_complex=True)
        print(sizes, flush=True)
    run_recurrence("rnn", [2] * 9, torch.float32, "features", True, MANY)
    torch.cuda.synchronize()


if __name__ == "__main__":
    main()
