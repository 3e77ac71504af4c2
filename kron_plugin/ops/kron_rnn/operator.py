"""What the fused backends share: the recurrence as a differentiable operator of torch.

A backend supplies two functions, one a pass, on plain tensors. They become operators of their own,
`kron_plugin::kron_rnn_NAME` and `..._backward`, which autograd and torch.compile know. All factors
go in as one real vector, so that their gradient is one too.
"""

from math import prod
from typing import Callable, List, Optional, Sequence, Tuple

import torch
from torch import Tensor

from .. import checks
from ..backends import compute_type
from ..inputs import prepared
from ..kron.flat import flatten, shapes_of
from ..operators import needs_backward, register, register_backward

ACTIVATIONS = {"modrelu": 0, "tanh": 1, "identity": 2}  # enum Activation of the kernels


def check(
    x: Tensor,
    shapes: Sequence[int],
    bias: Tensor,
    h0: Tensor,
    weight: Optional[Tensor],
    is_complex: bool,
    activation: str,
) -> None:
    """Raise a ValueError unless all but the factors' entries fit together."""

    def require(condition: bool, message: str, *values) -> None:
        checks.require("kron_rnn", condition, message, *values)

    n, columns = prod(shapes[::2]), prod(shapes[1::2])
    message = "factors make a {}x{} matrix; the recurrence needs a square one"
    require(n == columns, message, n, columns)
    width = 2 * n if is_complex else n
    require(activation in ACTIVATIONS, "activation={!r}: choose from {}", activation, ACTIVATIONS)
    require(not (is_complex and activation == "tanh"), "activation='tanh' needs real factors")
    checks.check_steps("kron_rnn", x)
    checks.check_shape("kron_rnn", "bias", bias, (n,) if activation == "modrelu" else (width,))
    checks.check_shape("kron_rnn", "h0", h0, (x.shape[1], width))
    checks.check_input("kron_rnn", x, weight, width)
    checks.check_alike("kron_rnn", h0, {"x": x, "bias": bias, "weight": weight})


def define(
    name: str, forward: Callable, backward: Callable, threads: Callable[[], int] = lambda: 1
) -> Callable:
    """`kron_rnn` by the two functions of a backend, with arguments as checked there.

    Args:
        forward: fills what `_allocate` made:
            (x, factors, bias, h0, weight, lengths, shapes, is_complex, activation, every, threads,
            states, kept, last) -> None
        backward: fills what `_allocate_gradients` made:
            (d_states, d_last, states, kept, x, factors, bias, h0, weight, lengths, shapes,
            is_complex, activation, every, threads, d_x, d_factors, d_bias, d_h0, d_weight)
            -> None
        threads: asked once a call, so that both passes deal the batch out alike: `kept` may be laid
            out by it.
    """

    def _forward(
        x: Tensor,  # shape: (T, B, W), (T, B, I) or (T, B) of integers
        factors: Tensor,  # shape: (Σ P_f Q_f C,)
        bias: Tensor,
        h0: Tensor,  # shape: (B, W)
        weight: Optional[Tensor],  # shape: (I, W)
        lengths: Optional[Tensor],  # shape: (B,)
        shapes: List[int],
        is_complex: bool,
        activation: str,
        need_output: bool,
        every: int,
        threads: int,
        keep: bool,
    ) -> Tuple[Tensor, Tensor, Tensor]:
        """States (T, B, W), what the backward pass keeps instead, and the last state (B, W)."""
        problem = (x, factors, bias, h0, weight, lengths, shapes, is_complex, activation, every)
        _check_buffers(*problem)
        results = _allocate(x, h0, need_output, every, keep)
        forward(*problem, threads, *results)
        return results

    def _forward_fake(
        x, factors, bias, h0, weight, lengths, shapes, is_complex, activation, need_output, every,
        threads, keep,
    ):  # fmt: skip
        return _allocate(x, h0, need_output, every, keep)

    def _backward(
        d_states: Optional[Tensor],
        d_last: Optional[Tensor],
        states: Tensor,
        kept: Tensor,
        x: Tensor,
        factors: Tensor,
        bias: Tensor,
        h0: Tensor,
        weight: Optional[Tensor],
        lengths: Optional[Tensor],
        shapes: List[int],
        is_complex: bool,
        activation: str,
        every: int,
        threads: int,
        need_d_x: bool,
    ) -> Tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Gradients of x, factors, bias, h0 and weight; empty for an x or weight without one."""
        problem = (x, factors, bias, h0, weight, lengths, shapes, is_complex, activation, every)
        _check_buffers(*problem)
        if not _has_states(d_states, d_last, states, kept, x, h0, every):
            made = _allocate(x, h0, need_output=False, every=every, keep=True)
            forward(*problem, threads, *made)
            states, kept, _ = made
        results = _allocate_gradients(x, factors, bias, h0, weight, need_d_x)
        backward(d_states, d_last, states, kept, *problem, threads, *results)
        return results

    def _backward_fake(
        d_states, d_last, states, kept, x, factors, bias, h0, weight, lengths, shapes, is_complex,
        activation, every, threads, need_d_x,
    ):  # fmt: skip
        return _allocate_gradients(x, factors, bias, h0, weight, need_d_x)

    def _differentiate(ctx, d_states, d_kept, d_last):
        if d_states is not None and d_states.numel() == 0:
            d_states = None
        d_x, d_factors, d_bias, d_h0, d_weight = backward_operator(
            d_states, d_last, *ctx.saved_tensors, *ctx.settings, ctx.needs_input_grad[0]
        )
        d_x = d_x if ctx.needs_input_grad[0] else None
        d_weight = d_weight if ctx.needs_input_grad[4] else None
        return d_x, d_factors, d_bias, d_h0, d_weight, *[None] * 8

    backward_operator = register_backward("kron_rnn", name, _backward, _backward_fake)
    operator = register("kron_rnn", name, _forward, _forward_fake, _differentiate, _setup_context)

    def run(x, factors, bias, h0, lengths, weight, activation, need_output, checkpoint_every):
        is_complex = factors[0].is_complex()
        x, weight = prepared(x, weight, lengths)
        tensors = (x, flatten(factors).to(compute_type(h0.dtype)), bias, h0, weight)
        shapes = shapes_of(factors)
        keep = needs_backward(tensors)
        settings = (shapes, is_complex, activation, need_output, checkpoint_every, threads(), keep)
        states, _, last = operator(*tensors, lengths, *settings)
        return states, last

    run.operator = operator
    return run


def _check_buffers(
    x, factors, bias, h0, weight, lengths, shapes, is_complex, activation, every
) -> None:
    """Raise a ValueError unless each array is what a kernel will take it for."""
    checks.check_flat_factors("kron_rnn", factors, shapes, is_complex, h0)
    check(x, shapes, bias, h0, weight, is_complex, activation)
    checks.check_lengths("kron_rnn", lengths, x)
    checks.check_every("kron_rnn", every)


def _has_states(d_states, d_last, states, kept, x, h0, every) -> bool:
    """Whether the backward pass was given states; a graph traced without gradients kept none.

    Raises:
        ValueError: an array is not what a kernel will take it for.
    """
    rows = (x.shape[0], *h0.shape)
    checks.check_array("kron_rnn", "d_states", d_states, rows, h0)
    checks.check_array("kron_rnn", "d_last", d_last, tuple(h0.shape), h0)
    last_ones = (-(-x.shape[0] // every), *h0.shape)
    has_kept = checks.is_kept("kron_rnn", "kept", kept, last_ones, h0, computed=every > 1)
    return (checks.is_kept("kron_rnn", "states", states, rows, h0) and every == 1) or has_kept


def _allocate(x: Tensor, h0: Tensor, need_output: bool, every: int, keep: bool):
    """Arrays for the results of a forward pass; those not asked for are empty.

    Kept are the last states of segments of `every` steps, in the type that is computed with; all
    states, as they are stored, if `every` is 1 and they are no output.
    """
    steps = x.shape[0]
    states = h0.new_empty((steps, *h0.shape) if need_output else (0,))
    apart = keep and (every > 1 or not need_output)
    dtype = compute_type(h0.dtype) if every > 1 else h0.dtype
    kept = h0.new_empty((-(-steps // every), *h0.shape) if apart else (0,), dtype=dtype)
    return states, kept, torch.empty_like(h0, memory_format=torch.contiguous_format)


def _allocate_gradients(x, factors, bias, h0, weight, need_d_x):
    def like(tensor: Optional[Tensor], needed: bool) -> Tensor:
        return tensor.new_empty(tensor.shape) if needed else h0.new_empty(0)

    needed = [need_d_x, True, True, True, weight is not None]
    return tuple(like(*pair) for pair in zip((x, factors, bias, h0, weight), needed, strict=True))


def _setup_context(ctx, inputs, output) -> None:
    x, factors, bias, h0, weight, lengths, *rest = inputs
    shapes, is_complex, activation, need_output, every, threads, _ = rest
    states, kept, _ = output
    if every > 1 or not need_output:
        states = states.new_empty(0)
    ctx.settings = (shapes, is_complex, activation, every, threads)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(states, kept, x, factors, bias, h0, weight, lengths)
