"""Run kernels of every kind on small problems, for compute-sanitizer (gpu.py calls this)."""

from itertools import product
from math import prod
from typing import List

import torch
from torch import Tensor

from kron_plugin.ops import kron_lstm, kron_matmul, kron_rnn

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
    sizes: List[int], dtype: torch.dtype, is_complex: bool, form: str, batch: int = BATCH
) -> None:
    real = torch.float64 if dtype == torch.float64 else torch.float32
    factors = random_factors(sizes, real.to_complex() if is_complex else real)
    n = prod(sizes)
    width = 2 * n if is_complex else n
    bias = torch.zeros(n, dtype=dtype, device="cuda")
    h0 = torch.ones(batch, width, dtype=dtype, device="cuda")
    lengths = 1 + torch.arange(batch, device="cuda") % STEPS
    for every, need_output in ((1, True), (2, False)):
        arguments = random_input(form, batch, width, dtype)
        states, last = kron_rnn(
            *(arguments["x"], factors, bias, h0, lengths),
            weight=arguments["weight"],
            checkpoint_every=every,
            need_output=need_output,
            backend="cuda",
        )
        (states.float().square().sum() + last.float().square().sum()).backward()
    assert all(w.grad.isfinite().all() for w in factors)


def run_lstm(sizes: List[int], dtype: torch.dtype, form: str) -> None:
    real = torch.float64 if dtype == torch.float64 else torch.float32
    gates = [random_factors(sizes, real) for _ in range(4)]
    n = prod(sizes)
    bias = torch.zeros(4 * n, dtype=dtype, device="cuda")
    state = tuple(torch.zeros(BATCH, n, dtype=dtype, device="cuda") for _ in range(2))
    for every in (1, 2):
        arguments = random_input(form, BATCH, 4 * n, dtype)
        outputs, _ = kron_lstm(
            *(arguments["x"], gates, bias, state),
            weight=arguments["weight"],
            checkpoint_every=every,
            backend="cuda",
        )
        outputs.float().square().sum().backward()
    assert all(w.grad.isfinite().all() for gate in gates for w in gate)


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
            for is_complex in (True, False):
                run_recurrence(sizes, dtype, is_complex, form)
            run_lstm(sizes, dtype, form)
        print(sizes, flush=True)
    run_recurrence([2] * 9, torch.float32, True, "features", MANY)
    torch.cuda.synchronize()


if __name__ == "__main__":
    main()
