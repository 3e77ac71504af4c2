"""Two lower bounds of our own times: the multiply-adds, and the bytes that have to be moved."""

from typing import Any, Dict, List, NamedTuple, Tuple

import torch
from peers import Candidate, Case, Row
from timing import bandwidth, peak_multiply_adds

from kron_plugin.ops.recurrence.cpu import most_features


class Work(NamedTuple):
    """What a pass has to do at least."""

    multiply_adds: float = 0  # real ones
    read: float = 0  # bytes
    written: float = 0

    def seconds(self, threads: int) -> Dict[str, float]:
        """At the rates measured here. Bytes move at the rate of an array of as many bytes, so that
        the cache of the processor counts where they fit in."""
        read, written = bandwidth(int(self.read + self.written), threads)
        return {
            "arithmetic": self.multiply_adds / peak_multiply_adds(threads),
            "memory": self.read / read + self.written / written,
        }


def per_element(shapes: List[Tuple[int, int]]) -> int:
    """Multiply-adds of W h for each element of h, for square factors. A 2x2 factor needs one, and
    all 2x2 factors together one more, for their diagonals (native/product.h); others need P_f."""
    each = [1 if p == q == 2 else p for p, q in shapes]
    return sum(each) + ((2, 2) in shapes)


def layer_work(row: Row, layer: Any, backward: bool) -> Work:
    """Of one of our layers, without gradients of its input.

    Backwards a product is W^H delta, then the gradients of the factors, which cost as much
    (native/recurrence.cpp). The products forward are computed again in cells that are not
    `from_output`, and in segments of several steps. Outputs are written; the other parts of the
    state too, for the backward pass, which reads all parts and the gradient of the outputs. Where
    the kernel does not project the features itself, one matrix product does, before the steps: u
    is written and read, and backwards its gradient.
    """
    inner = layer.layers[0]
    cell, every, parts = inner.recurrence.cell, inner.checkpoint_every, 1 + inner.complex
    elements = row.batch * row.steps * inner.hidden_size
    product = cell.products * elements * parts**2 * per_element(inner.factor_sizes)
    projection = 0 if row.form == "tokens" else cell.products * elements * parts * row.inputs
    x = row.batch * row.steps * (8 if row.form == "tokens" else 4 * row.inputs)
    states = 4 * elements * parts
    most = most_features(inner.layout, cell.products * inner.output_size)
    u = cell.products * states if projection and row.inputs > most else 0
    if not backward:
        return Work(product + projection, x + u, states + u)
    again = 1 - 1 / every + (not cell.from_output)
    return Work(
        product * (3 + again) + projection * (2 if u else 2 + again),
        2 * x + states * (1 + len(cell.state) / every) + u * (2 + again),
        states * (1 + (len(cell.state) - 1) / every) + 2 * u,
    )


def product_work(row: Row, size: int, backward: bool) -> Work:
    """Of W x by 2x2 factors, with gradients of x and of the factors."""
    parts = 2 if row.dtype.is_complex else 1
    elements, factors = row.batch * size, [(2, 2)] * (size.bit_length() - 1)
    forward = elements * parts**2 * per_element(factors)
    x = 4 * elements * parts
    return Work(3 * forward, 3 * x, 2 * x) if backward else Work(forward, x, x)


def floors(row: Row, candidate: Candidate, case: Case, backward: bool) -> Dict[str, float]:
    """In milliseconds, with what they are made of. A sequence stays on one thread."""
    row = row._replace(steps=1) if row.form == "step" else row
    if row.form == "product":
        work = product_work(row, candidate.size, backward)
    else:
        work = layer_work(row, case.layer, backward)
    found = work.seconds(min(torch.get_num_threads(), row.batch))
    return {**work._asdict(), **{f"{name}_ms": 1000 * s for name, s in found.items()}}
