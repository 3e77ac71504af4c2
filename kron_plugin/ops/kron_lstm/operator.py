"""What the fused backends share: the LSTM's recurrence as a differentiable operator of torch.

A backend supplies two functions, one a pass, on plain tensors. They become operators of their own,
`kron_plugin::kron_lstm_NAME` and `..._backward`, which autograd and torch.compile know. The factors
of all gates go in as one vector, so that their gradient is one too.
"""

from math import prod
from typing import Callable, List, Optional, Sequence, Tuple

from torch import Tensor

from .. import checks
from ..backends import compute_type
from ..inputs import prepared
from ..kron.flat import flatten, shapes_of
from ..operators import needs_backward, register, register_backward


def split_gates(shapes: List[int], counts: List[int]) -> List[List[int]]:
    """The sizes P_0, Q_0, P_1, … of each gate's factors."""
    ends = [2 * sum(counts[: k + 1]) for k in range(len(counts))]
    return [shapes[end - 2 * count : end] for end, count in zip(ends, counts, strict=True)]


def entries(gates: List[List[int]]) -> List[int]:
    """How many numbers each gate's factors hold."""
    return [sum(p * q for p, q in zip(g[::2], g[1::2], strict=True)) for g in gates]


def check(
    x: Tensor,
    gates: Sequence[Sequence[int]],  # P_0, Q_0, P_1, … of each gate
    bias: Tensor,
    h0: Tensor,
    c0: Tensor,
    weight: Optional[Tensor],
) -> None:
    """Raise a ValueError unless all but the factors' entries fit together."""
    n = bias.shape[0] // 4 if bias.dim() == 1 else 0
    for name, shapes in zip("ifgo", gates, strict=True):
        rows, columns = prod(shapes[::2]), prod(shapes[1::2])
        checks.require(
            "kron_lstm",
            rows == columns == n,
            "factors of gate {} make a {}x{} matrix; with a bias of 4·{} it must be {}x{}",
            *(name, rows, columns, n, n, n),
        )
    checks.check_steps("kron_lstm", x)
    checks.check_shape("kron_lstm", "bias", bias, (4 * n,))
    for name, part in (("h0", h0), ("c0", c0)):
        checks.check_shape("kron_lstm", name, part, (x.shape[1], n))
    checks.check_input("kron_lstm", x, weight, 4 * n)
    checks.check_alike("kron_lstm", h0, {"x": x, "bias": bias, "weight": weight, "c0": c0})


def define(
    name: str, forward: Callable, backward: Callable, threads: Callable[[], int] = lambda: 1
) -> Callable:
    """`kron_lstm` by the two functions of a backend, with arguments as checked there.

    Args:
        forward: fills what `_allocate` made:
            (x, factors, bias, h0, c0, weight, lengths, shapes, counts, every, threads,
            outputs, kept, h_n, c_n) -> None
        backward: fills what `_allocate_gradients` made:
            (d_outputs, d_h_n, d_c_n, kept, x, factors, bias, h0, c0, weight, lengths, shapes,
            counts, every, threads, d_x, d_factors, d_bias, d_h0, d_c0, d_weight) -> None
        threads: asked once a call, so that both passes deal the batch out alike: `kept` may be laid
            out by it.
    """

    def _forward(
        x: Tensor,  # shape: (T, B, 4N), (T, B, I) or (T, B) of integers
        factors: Tensor,  # shape: (Σ P_f Q_f,) over all gates
        bias: Tensor,  # shape: (4N,)
        h0: Tensor,  # shape: (B, N)
        c0: Tensor,  # shape: (B, N)
        weight: Optional[Tensor],  # shape: (I, 4N)
        lengths: Optional[Tensor],  # shape: (B,)
        shapes: List[int],  # P_0, Q_0, P_1, … of gate i, then of f, g and o
        counts: List[int],  # how many factors each gate has
        need_output: bool,
        every: int,
        threads: int,
        keep: bool,
    ) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
        """Outputs (T, B, N), what the backward pass keeps, and the last h and c (B, N)."""
        problem = (x, factors, bias, h0, c0, weight, lengths, shapes, counts, every)
        _check_buffers(*problem)
        results = _allocate(x, h0, need_output, every, keep)
        forward(*problem, threads, *results)
        return results

    def _forward_fake(
        x, factors, bias, h0, c0, weight, lengths, shapes, counts, need_output, every, threads,
        keep,
    ):  # fmt: skip
        return _allocate(x, h0, need_output, every, keep)

    def _backward(
        d_outputs: Optional[Tensor],
        d_h_n: Optional[Tensor],
        d_c_n: Optional[Tensor],
        kept: Tensor,
        x: Tensor,
        factors: Tensor,
        bias: Tensor,
        h0: Tensor,
        c0: Tensor,
        weight: Optional[Tensor],
        lengths: Optional[Tensor],
        shapes: List[int],
        counts: List[int],
        every: int,
        threads: int,
        need_d_x: bool,
    ) -> Tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Gradients of x, factors, bias, h0, c0 and weight; empty for an x or weight without."""
        problem = (x, factors, bias, h0, c0, weight, lengths, shapes, counts, every)
        _check_buffers(*problem)
        if not _has_states(d_outputs, d_h_n, d_c_n, kept, x, h0, every):
            made = _allocate(x, h0, need_output=False, every=every, keep=True)
            forward(*problem, threads, *made)
            kept = made[1]
        results = _allocate_gradients(x, factors, bias, h0, weight, need_d_x)
        backward(d_outputs, d_h_n, d_c_n, kept, *problem, threads, *results)
        return results

    def _backward_fake(
        d_outputs, d_h_n, d_c_n, kept, x, factors, bias, h0, c0, weight, lengths, shapes, counts,
        every, threads, need_d_x,
    ):  # fmt: skip
        return _allocate_gradients(x, factors, bias, h0, weight, need_d_x)

    def _differentiate(ctx, d_outputs, d_kept, d_h_n, d_c_n):
        if d_outputs is not None and d_outputs.numel() == 0:
            d_outputs = None
        needs_x, *_, needs_weight = ctx.needs_input_grad[:6]
        gradients = backward_operator(
            d_outputs, d_h_n, d_c_n, *ctx.saved_tensors, *ctx.settings, needs_x
        )
        d_x, d_factors, d_bias, d_h0, d_c0, d_weight = gradients
        d_x, d_weight = d_x if needs_x else None, d_weight if needs_weight else None
        return d_x, d_factors, d_bias, d_h0, d_c0, d_weight, *[None] * 7

    backward_operator = register_backward("kron_lstm", name, _backward, _backward_fake)
    operator = register("kron_lstm", name, _forward, _forward_fake, _differentiate, _setup_context)

    def run(x, factors, bias, state, lengths, weight, need_output, checkpoint_every):
        x, weight = prepared(x, weight, lengths)
        together = [w for gate in factors for w in gate]
        flat = flatten(together).to(compute_type(state[0].dtype))
        shapes = shapes_of(together)
        counts = [len(gate) for gate in factors]
        tensors = (x, flat, bias, *state, weight)
        keep = needs_backward(tensors)
        settings = (shapes, counts, need_output, checkpoint_every, threads(), keep)
        outputs, _, h_n, c_n = operator(*tensors, lengths, *settings)
        return outputs, (h_n, c_n)

    run.operator = operator
    return run


def _check_buffers(x, factors, bias, h0, c0, weight, lengths, shapes, counts, every) -> None:
    """Raise a ValueError unless each array is what a kernel will take it for."""
    checks.check_flat_factors("kron_lstm", factors, shapes, False, h0)
    fit = len(counts) == 4 and min(counts) >= 1 and 2 * sum(counts) == len(shapes)
    checks.require("kron_lstm", fit, "counts={} must tell four gates of {}", counts, shapes)
    check(x, split_gates(shapes, counts), bias, h0, c0, weight)
    checks.check_lengths("kron_lstm", lengths, x)
    checks.check_every("kron_lstm", every)


def _has_states(d_outputs, d_h_n, d_c_n, kept, x, h0, every) -> bool:
    """Whether the backward pass was given states; a graph traced without gradients kept none.

    Raises:
        ValueError: an array is not what a kernel will take it for.
    """
    checks.check_array("kron_lstm", "d_outputs", d_outputs, (x.shape[0], *h0.shape), h0)
    for name, part in (("d_h_n", d_h_n), ("d_c_n", d_c_n)):
        checks.check_array("kron_lstm", name, part, tuple(h0.shape), h0)
    before = (-(-x.shape[0] // every), 2, *h0.shape)
    return checks.is_kept("kron_lstm", "kept", kept, before, h0, computed=True)


def _allocate(x: Tensor, h0: Tensor, need_output: bool, every: int, keep: bool):
    """Arrays for the results of a forward pass; those not asked for are empty.

    Kept are h and c before the first step of each segment of `every` steps, in the type that is
    computed with.
    """
    steps = x.shape[0]
    outputs = h0.new_empty((steps, *h0.shape) if need_output else (0,))
    shape = (-(-steps // every), 2, *h0.shape) if keep else (0,)
    kept = h0.new_empty(shape, dtype=compute_type(h0.dtype))
    return outputs, kept, h0.new_empty(h0.shape), h0.new_empty(h0.shape)


def _allocate_gradients(x, factors, bias, h0, weight, need_d_x):
    d_x = x.new_empty(x.shape) if need_d_x else h0.new_empty(0)
    d_weight = h0.new_empty(0) if weight is None else weight.new_empty(weight.shape)
    states = (h0.new_empty(h0.shape) for _ in range(2))
    return d_x, factors.new_empty(factors.shape), bias.new_empty(bias.shape), *states, d_weight


def _setup_context(ctx, inputs, output) -> None:
    *tensors, shapes, counts, _, every, threads, _ = inputs
    ctx.settings = (shapes, counts, every, threads)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[1], *tensors)
