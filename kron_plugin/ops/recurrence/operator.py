"""What the fused backends share: a recurrence as a differentiable operator of torch.

A backend supplies two functions on plain tensors, one per pass. They become the operators
`kron_plugin::kron_CELL_BACKEND` and `..._backward`, which autograd and torch.compile know. All
factors go in as one real vector, so that their gradient is one too.
"""

from inspect import Parameter, Signature
from typing import Callable, Optional, Sequence, Tuple

import torch
from torch import Tensor

from .. import checks
from ..backends import compute_type
from ..inputs import MAX_FEATURES, prepared
from ..kron.flat import Layout
from ..operators import needs_backward, register, register_backward
from .arguments import GRADIENTS, Arguments
from .cell import Cell


def define(
    cell: Cell,
    backend: str,
    forward: Callable,
    backward: Callable,
    threads: Callable[[], int] = lambda: 1,
    empty: Callable[..., Tensor] = Tensor.new_empty,
    most_features: Callable[[Layout, int], int] = lambda layout, width: MAX_FEATURES,
) -> Callable:
    """The recurrence of a cell, made from the two functions of a backend.

    Args:
        forward: fills the results of `_allocate`, the last state as one tensor:
            (arguments, outputs, kept, last) -> None
        backward: fills the results of `_allocate_gradients`, gradients of the first arguments:
            (arguments, d_outputs, d_last, outputs, kept, d_x, d_factors, d_bias, d_state, d_weight)
            -> None
        threads: called once per call, so that both passes share out the batch alike.
        empty: makes the large results, like `Tensor.new_empty`.
        most_features: how many features, each with so many weights, it projects faster than torch.
    """

    def fill(arguments: Arguments, outputs: Tensor, kept: Tensor, *last: Tensor) -> None:
        if len(last) == 1:
            return forward(arguments, outputs, kept, last[0].unsqueeze(0))
        together = arguments.state.new_empty(arguments.state.shape)
        forward(arguments, outputs, kept, together)
        for part, made in zip(last, together, strict=True):  # tensors that share no memory
            part.copy_(made)

    def _forward(*given) -> Tuple[Tensor, ...]:
        arguments = Arguments(*given[:-2])
        arguments.check(cell)
        need_output, keep = given[-2:]
        results = _allocate(cell, arguments, need_output, keep, empty)
        fill(arguments, *results)
        return results

    def _forward_fake(*given):
        return _allocate(cell, Arguments(*given[:-2]), *given[-2:])

    def _backward(*given) -> Tuple[Tensor, ...]:
        d_outputs, d_last, outputs, kept, *rest, need_d_x = given
        arguments = Arguments(*rest)
        arguments.check(cell)
        if not _has_states(cell, arguments, d_outputs, d_last, outputs, kept):
            made = _allocate(cell, arguments, need_output=False, keep=True, empty=empty)
            fill(arguments, *made)
            outputs, kept, *_ = made
        results = _allocate_gradients(arguments, need_d_x, empty)
        backward(arguments, d_outputs, d_last, outputs, kept, *results)
        return results

    def _backward_fake(*given):
        return _allocate_gradients(Arguments(*given[4:-1]), given[-1])

    def _differentiate(ctx, d_outputs, d_kept, *d_last):
        if d_outputs is not None and d_outputs.numel() == 0:
            d_outputs = None
        d_state = _stacked(d_last)
        outputs, kept, *tensors = ctx.saved_tensors
        needs = list(ctx.needs_input_grad[:GRADIENTS])
        arguments = (*tensors, *ctx.settings)
        gradients = backward_operator(d_outputs, d_state, outputs, kept, *arguments, needs[0])
        wanted = [d if need else None for d, need in zip(gradients, needs, strict=True)]
        return (*wanted, *[None] * (len(arguments) - GRADIENTS + 2))

    def _setup_context(ctx, inputs, results) -> None:
        *arguments, _, _ = inputs
        outputs, kept, *_ = results
        if kept.numel() or not cell.from_output:
            outputs = outputs.new_empty(0)
        ctx.settings = arguments[GRADIENTS + 1 :]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(outputs, kept, *arguments[: GRADIENTS + 1])

    _take(_forward, {}, {"need_output": bool, "keep": bool}, results=2 + len(cell.state))
    states = {"outputs": Tensor, "kept": Tensor}
    upstream = {"d_outputs": Optional[Tensor], "d_last": Optional[Tensor]}
    _take(_backward, {**upstream, **states}, {"need_d_x": bool}, results=GRADIENTS)
    names = (cell.operation, backend)
    backward_operator = register_backward(*names, _backward, _backward_fake)
    operator = register(*names, _forward, _forward_fake, _differentiate, _setup_context)

    def run(
        x, numbers, layout, bias, state, lengths, weight, activation, need_output, checkpoint_every
    ):
        most = 0 if weight is None else most_features(layout, weight.shape[1])
        x, weight = prepared(x, weight, lengths, most)
        numbers = numbers.to(compute_type(state[0].dtype))
        tensors = (x, numbers, bias, _stacked(state), weight)
        settings = (lengths, *layout, activation, checkpoint_every, threads())
        outputs, _, *last = operator(*tensors, *settings, need_output, needs_backward(tensors))
        return outputs, tuple(last)

    return run


def _stacked(parts: Sequence[Optional[Tensor]]) -> Optional[Tensor]:
    """The parts of a state as one tensor (S, B, W); zeros for a part that is None, None for all."""
    given = [part for part in parts if part is not None]
    if len(parts) == 1 or not given:
        return given[0].unsqueeze(0) if given else None
    return torch.stack([torch.zeros_like(given[0]) if part is None else part for part in parts])


def _take(function: Callable, before: dict, after: dict, results: int) -> None:
    """Give a function of any arguments the signature for its operator's schema: the fields of
    `Arguments`, with others around them."""
    taken = {**before, **Arguments.__annotations__, **after}
    how = Parameter.POSITIONAL_OR_KEYWORD
    parameters = [Parameter(name, how, annotation=kind) for name, kind in taken.items()]
    returned = Tuple.__getitem__((Tensor,) * results)
    vars(function)["__signature__"] = Signature(parameters, return_annotation=returned)


def _has_states(cell: Cell, arguments: Arguments, d_outputs, d_last, outputs, kept) -> bool:
    """Whether the backward pass has states: a graph traced without gradients kept none.

    Raises:
        ValueError: an array is not what a kernel will read.
    """
    state, operation = arguments.state, cell.operation
    rows = (arguments.steps, *state.shape[1:])
    checks.check_array(operation, "d_outputs", d_outputs, rows, state)
    checks.check_array(operation, "d_last", d_last, tuple(state.shape), state)
    shape, computed = _kept(cell, arguments)
    has_kept = checks.is_kept(operation, "kept", kept, shape, state, computed)
    has_outputs = checks.is_kept(operation, "outputs", outputs, rows, state)
    return has_kept or (has_outputs and cell.from_output and arguments.every == 1)


def _kept(cell: Cell, arguments: Arguments) -> Tuple[Tuple[int, ...], bool]:
    """The shape of the kept states, those at the ends of all segments, and whether they have the
    type of computation; else they have that of the outputs, in whose place they are."""
    shape = (arguments.segments + 1, *arguments.state.shape)
    return shape, arguments.every > 1 or not cell.from_output


def _allocate(
    cell: Cell, arguments: Arguments, need_output: bool, keep: bool, empty=Tensor.new_empty
) -> Tuple[Tensor, ...]:
    """Outputs (T, B, W), states kept for the backward pass, and the last state, (B, W) a part. What
    is not needed is empty."""
    state = arguments.state
    outputs = empty(state, (arguments.steps, *state.shape[1:]) if need_output else (0,))
    by_outputs = cell.from_output and need_output and arguments.every == 1
    shape, computed = _kept(cell, arguments)
    dtype = compute_type(state.dtype) if computed else state.dtype
    kept = empty(state, shape if keep and not by_outputs else (0,), dtype=dtype)
    return outputs, kept, *(state.new_empty(state.shape[1:]) for _ in cell.state)


def _allocate_gradients(arguments: Arguments, need_d_x: bool, empty=Tensor.new_empty):
    """The gradients of x, factors, bias, state and weight; empty if x or weight has none."""

    state = arguments.state
    x = arguments.x if need_d_x else None
    wanted = (x, arguments.factors, arguments.bias, state, arguments.weight)
    return tuple(state.new_empty(0) if t is None else empty(t, t.shape) for t in wanted)
