"""The sizes of launches of the CUDA kernels, and the layout of factors for them."""

from math import prod
from typing import List, NamedTuple, Sequence, Tuple

import numpy as np
import torch
from torch import Tensor

from .activation import as_complex
from .cuda_kernels import MAX_PRODUCTS, MAX_STAGES, PLAN, Geometry, Kernels, aligned, attribute

# Constants of butterfly.cuh and stages.cuh; a test compares them.
ELEMENTS_PER_THREAD = 4
PRODUCT_THREADS = 512
GRADIENT_THREADS = 256
MAX_RUN = 3
STAGE_THREADS = 512
PRODUCT_VECTORS = 3


def geometry(
    kernels: Kernels,
    function: str,
    device: torch.device,
    products: Sequence[Sequence[int]],
    rows: int,
    vectors: int = PRODUCT_VECTORS,
) -> Geometry:
    """The launch of `function` for `rows` sequences (forward, backward) or vectors (others).

    Args:
        products: the sizes P_0, Q_0, P_1, … of each product's factors.
        vectors: how many vectors a block of `stages` holds.
    """
    if kernels.kind == "butterfly":
        return _butterfly_geometry(kernels, function, device, rows)
    return _stages_geometry(kernels, function, device, products, rows, vectors)


def _number_bytes(kernels: Kernels) -> int:
    return 8 if kernels.stored == "double" else 4


def _blocks(
    function: str, device: torch.device, rows: int, rows_per_block: int, threads: int
) -> int:
    """One block per group of sequences; in other functions, resident blocks share the rows."""
    blocks = -(-rows // rows_per_block)
    if function in ("forward", "backward"):
        return blocks
    resident = GRADIENT_THREADS if function == "gradient" else PRODUCT_THREADS
    return min(blocks, max(1, resident // threads) * attribute(device, "MultiProcessorCount"))


def _butterfly_geometry(
    kernels: Kernels, function: str, device: torch.device, rows: int
) -> Geometry:
    size = 1 << kernels.bits
    threads = size // ELEMENTS_PER_THREAD
    sequences = max(1, 32 // threads)
    number = _number_bytes(kernels) * kernels.parts
    exchange = 2 * size * number
    shared = exchange if threads > 32 else 0
    if function == "gradient":
        entries = 4 * kernels.bits * number
        shared = max(exchange + entries, threads * sequences // 32 * entries)
    grid = _blocks(function, device, rows, sequences, threads * sequences)
    return Geometry(grid, (threads, sequences), shared, {"size": size})


class _Plan(NamedTuple):
    """A product as passes (p, q, bits, offset) over a vector, lowest digit first."""

    stages: List[Tuple[int, int, int, int]]
    capacity: int  # size of the longest intermediate vector
    entries: int  # of all factors

    def field(self, columns: int) -> np.ndarray:
        """`struct Plan`."""
        if len(self.stages) > MAX_STAGES:
            raise ValueError(
                f"the CUDA kernels take up to {MAX_STAGES} factors (three 2x2 ones that are"
                f" neighbours count as one), not {len(self.stages)}"
            )
        if max(self.capacity, self.entries) > 2**31 // 4:
            raise ValueError(
                f"a vector or factor of {max(self.capacity, self.entries)} entries is too large for"
                " the CUDA kernels"
            )
        made = np.zeros((), PLAN)
        made["count"], made["columns"] = len(self.stages), columns
        made["stages"][: len(self.stages)] = self.stages
        return made


def plan(shapes: Sequence[int], offset: int = 0) -> _Plan:
    """The product with factors P_0, Q_0, P_1, … whose entries begin at `offset`."""
    factors = list(zip(shapes[::2], shapes[1::2], strict=True))
    offsets = [0, *np.cumsum([p * q for p, q in factors]).tolist()]
    stages, size = [], prod(shapes[1::2])
    capacity, f = size, len(factors) - 1
    while f >= 0:
        run = 0
        while run < MAX_RUN and run <= f and factors[f - run] == (2, 2):
            run += 1
        p, q = (1 << run, 1 << run) if run else factors[f]
        stages.append((p, q, run, offset + offsets[f]))
        size = size // q * p
        capacity = max(capacity, size)
        f -= max(run, 1)
    return _Plan(stages, capacity, offsets[-1])


def _stages_geometry(
    kernels: Kernels,
    function: str,
    device: torch.device,
    products: Sequence[Sequence[int]],
    rows: int,
    count: int,
) -> Geometry:
    """Memory for a block's vectors, and for the factors: shared memory if they fit."""
    plans, entries = [], 0
    for shapes in products:
        plans.append(plan(shapes, entries))
        entries += plans[-1].entries
    made = np.zeros(MAX_PRODUCTS, PLAN)
    for k, (product, shapes) in enumerate(zip(plans, products, strict=True)):
        made[k] = product.field(prod(shapes[1::2]))
    capacity = max(product.capacity for product in plans)
    grid = _blocks(function, device, rows, 1, _stage_threads(capacity))
    element = _number_bytes(kernels) * kernels.parts
    room = attribute(device, "MaxSharedMemoryPerBlockOptin")
    vectors = count * capacity * element
    in_shared = vectors <= room
    taken = vectors if in_shared else 0
    cached = entries if taken + entries * element <= room else 0
    fields = {"size": prod(products[0][::2]), "plans": made, "capacity": capacity, "cached": cached}
    if not in_shared:
        fields["workspace"] = torch.empty(grid * vectors, dtype=torch.uint8, device=device)
    return Geometry(grid, (_stage_threads(capacity), 1), taken + cached * element, fields)


def _stage_threads(capacity: int) -> int:
    """Threads of a block for vectors of `capacity` elements."""
    return min(STAGE_THREADS, max(32, -(-capacity // 4 // 32) * 32))


def arranged(
    kernels: Kernels, factors: Tensor, shapes: Sequence[int], adjoint: bool
) -> Tensor:  # shape: (Σ P_f Q_f C,)
    """Factors, given one after the other row by row, in the layout that the kernels read.

    For `butterfly` this is the same layout, as its kernels transpose; for `stages`, column by
    column. With `adjoint`, factors are those of Wᴴ, whose columns are the conjugate rows of W.
    """
    if kernels.kind == "butterfly":
        return aligned(factors.reshape(-1))
    if adjoint and kernels.parts == 2:
        factors = torch.view_as_real(as_complex(factors.view(-1, 2)).conj_physical())
    if adjoint:
        return aligned(factors.reshape(-1))
    parts = factors.view(-1, kernels.parts)
    if set(shapes) == {2}:
        return aligned(parts.view(-1, 2, 2, kernels.parts).transpose(1, 2).reshape(-1))
    sizes = [p * q for p, q in zip(shapes[::2], shapes[1::2], strict=True)]
    turned = [
        part.view(p, q, -1).transpose(0, 1).reshape(-1)
        for part, p, q in zip(parts.split(sizes), shapes[::2], shapes[1::2], strict=True)
    ]
    return aligned(torch.cat(turned))


def adjoint_shapes(shapes: Sequence[int]) -> List[int]:
    """Sizes of the factors of Wᴴ: rows and columns are swapped."""
    return [size for p, q in zip(shapes[::2], shapes[1::2], strict=True) for size in (q, p)]
