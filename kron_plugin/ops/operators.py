"""Functions as operators of torch, `kron_plugin::OPERATION_BACKEND` and `…_backward`."""

import sys
from typing import Callable, Optional, Sequence

import torch
from torch import Tensor
from torch._library.custom_ops import get_library_allowing_overwrite


def register(
    operation: str,
    backend: str,
    function: Callable,
    fake: Callable,
    differentiate: Callable,
    setup_context: Callable,
) -> Callable:
    """An operator that autograd and torch.compile know.

    It is much like one of `torch.library.custom_op`, without the work of that at every call, which
    takes longer than the kernels of a short sequence.

    Args:
        function: computes; its annotated signature, without defaults, becomes the operator's. It
            returns new tensors, no views of its arguments.
        fake: allocates what `function` returns, for a traced graph.
        differentiate, setup_context: as for `torch.library.register_autograd`.
    """
    name = f"{operation}_{backend}"
    schema = torch.library.infer_schema(function, mutates_args=())
    # It may replace an earlier one, after a reload or an interrupted import of the package.
    library = get_library_allowing_overwrite("kron_plugin", name)
    library.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
    library.impl(name, _untraced(function), "CompositeExplicitAutograd")
    torch.library.register_fake(f"kron_plugin::{name}", fake, lib=library)
    operator = getattr(torch.ops.kron_plugin, name).default
    recorded = _recorded(operator, differentiate, setup_context)
    library.impl(name, recorded, "Autograd", with_keyset=True)
    return operator


def _untraced(function: Callable) -> Callable:
    """A function that torch.compile does not trace. Nothing is traced before the compiler is
    loaded, and importing it takes a second."""
    opaque = None

    def call(*args):
        nonlocal opaque
        if "torch._dynamo" not in sys.modules:
            return function(*args)
        opaque = opaque or torch.compiler.disable(function)
        return opaque(*args)

    return call


def _recorded(
    operator: torch._ops.OpOverload, differentiate: Callable, setup_context: Callable
) -> Callable:
    """The operator for autograd's dispatch key: it runs and records its derivative."""
    below = torch._C._after_autograd_keyset

    def forward(ctx, *args):
        args, keyset = args[:-1], args[-1]
        with torch._C._AutoDispatchBelowAutograd():
            output = operator.redispatch(keyset & below, *args)
        setup_context(ctx, args, output)
        return output

    def backward(ctx, *gradients):
        return *differentiate(ctx, *gradients), None

    methods = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    name = operator._schema.name.split("::")[1]  # shown in profiles
    recorded = type(name, (torch.autograd.Function,), methods)

    def call(keyset, *args):
        if torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in args):
            return recorded.apply(*args, keyset)
        with torch._C._AutoDispatchBelowAutograd():
            return operator.redispatch(keyset & below, *args)

    return call


def register_backward(operation: str, backend: str, function: Callable, fake: Callable) -> Callable:
    """The operator of the backward pass; to differentiate it raises an error."""

    def refuse(ctx, *gradients):
        raise RuntimeError(
            f"the {backend} kernel of {operation} has no second derivative; use"
            " backend='reference' for one"
        )

    return register(
        operation, f"{backend}_backward", function, fake, refuse, lambda ctx, inputs, output: None
    )


def needs_backward(tensors: Sequence[Optional[Tensor]]) -> bool:
    """Whether a backward pass may follow. A graph of torch.jit.trace may be differentiated later,
    even if gradients were off while tracing."""
    wanted = any(t is not None and t.requires_grad for t in tensors)
    return torch.jit.is_tracing() or (wanted and torch.is_grad_enabled())
