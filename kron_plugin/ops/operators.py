"""Functions made operators of torch, `kron_plugin::OPERATION_BACKEND` and `…_backward`."""

from typing import Callable, Optional, Sequence

import torch
from torch import Tensor


def register(
    operation: str,
    backend: str,
    function: Callable,
    fake: Callable,
    differentiate: Callable,
    setup_context: Callable,
) -> Callable:
    """An operator that autograd and torch.compile know.

    Args:
        function: computes; its annotated signature becomes the operator's.
        fake: allocates what `function` returns, for a traced graph.
        differentiate, setup_context: as `torch.library.register_autograd` takes them.
    """
    operator = torch.library.custom_op(
        f"kron_plugin::{operation}_{backend}", function, mutates_args=()
    )
    operator.register_fake(fake)
    operator.register_autograd(differentiate, setup_context=setup_context)
    return operator


def register_backward(operation: str, backend: str, function: Callable, fake: Callable) -> Callable:
    """The operator of the backward pass, which refuses to be differentiated itself."""

    def refuse(ctx, *gradients):
        raise RuntimeError(
            f"the {backend} kernel of {operation} has no second derivative; use"
            " backend='reference' for one"
        )

    return register(
        operation, f"{backend}_backward", function, fake, refuse, lambda ctx, inputs, output: None
    )


def needs_backward(tensors: Sequence[Optional[Tensor]]) -> bool:
    """Whether a backward pass may follow. What torch.jit.trace records may be differentiated later,
    whether gradients were wanted while it did or not."""
    wanted = any(t is not None and t.requires_grad for t in tensors)
    return torch.jit.is_tracing() or (wanted and torch.is_grad_enabled())
