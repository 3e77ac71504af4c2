"""Follow examples through a model: their states, and how the gradient of the loss reaches them."""

from typing import Any, Dict, List, NamedTuple, Tuple

import numpy as np
import torch
from torch import Tensor

from ..modules.layer import State


class Followed(NamedTuple):
    """The last steps of an example, up to the last one that the loss counts.

    states: h_t of the last layer after each step.
    last, whole: the norm of the gradient with respect to the last layer's state, h_t, and c_t where
        a cell has it; of the loss's last term, and of all its terms. For a task with one answer
        they are the same.
    """

    states: np.ndarray  # shape: (steps, W)
    last: np.ndarray  # shape: (steps,)
    whole: np.ndarray  # shape: (steps,)


def follow(model: Any, task: Any, sample: Dict[str, Any], steps: int) -> List[Followed]:
    """Run a model step by step over the last `steps` steps of a batch, and back.

    Args:
        model: in one direction, in double precision; its parameters need no gradients.
        task: a `SequenceTask`, whose own loss is taken.

    Raises:
        ValueError: the loss has no gradient.
    """
    spec, inputs = task.spec, sample["net_input"]
    source = inputs["src_tokens" if spec.arch == "kru_lm" else "source"].transpose(0, 1)
    source = source.double() if source.is_floating_point() else source
    split = max(0, len(source) - steps)
    h, states = _run(model.cell, source, split)
    batch = torch.arange(h.shape[1])
    ends = inputs.get("lengths", torch.tensor(len(source))).expand(len(batch)) - 1
    output = model.readout(h).transpose(0, 1) if spec.per_step else model.readout(h[ends, batch])
    gradient = _gradient_of_loss(task, output, sample, states[-1])
    last = whole = _norms(output, gradient, states)
    if spec.per_step:
        counted = gradient.flatten(2).any(2)
        ends = torch.where(counted, torch.arange(len(source)), 0).amax(1)
        of_last = torch.zeros_like(gradient)
        of_last[batch, ends] = gradient[batch, ends]
        last = _norms(output, of_last, states)
    h = h[split:].detach()
    return [
        Followed(*(part[: end + 1 - split, b].numpy() for part in (h, last, whole)))
        for b, end in enumerate(ends.tolist())
        if end >= split
    ]


def _run(cell: Any, source: Tensor, split: int) -> Tuple[Tensor, List[State]]:
    """The last layer's h of all steps, shape (T, B, W), and all states from step `split` on, for
    gradients."""
    state = None
    if split:
        with torch.no_grad():
            before, state = cell.run(source[:split])
    states: List[State] = []
    for x_t in source[split:].split(1):
        _, state = cell.run(x_t, state, need_output=False)
        if not states:  # nothing before it needs a gradient
            state = tuple(part.detach().requires_grad_() for part in state)
        states.append(state)
    h = torch.cat([state[0][-1:] for state in states])
    return (torch.cat([before, h]) if split else h), states


def _gradient_of_loss(task: Any, output: Tensor, sample: Dict[str, Any], state: State) -> Tensor:
    """∂L/∂output, for the mean loss of the task. Every step has a term of its own in it."""
    is_lm = task.spec.arch == "kru_lm"
    loss = task.compute_loss((output, {"state": state}) if is_lm else output, sample)
    (gradient,) = torch.autograd.grad(loss.total / loss.count, output)
    if not gradient.flatten(1).any(1).all():
        raise ValueError("the loss of an example has no gradient, so there is nothing to follow")
    return gradient


def _norms(output: Tensor, gradient: Tensor, states: List[State]) -> Tensor:  # shape: (steps, B)
    """The norms of the gradients with respect to the last layer's states, from the gradient with
    respect to the output."""
    parts = [part for state in states for part in state]
    gradients = torch.autograd.grad(
        output, parts, gradient, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    squares = torch.stack([g[-1].square().sum(-1) for g in gradients])
    return squares.unflatten(0, (len(states), -1)).sum(1).sqrt()
