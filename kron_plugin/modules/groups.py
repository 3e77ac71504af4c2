"""Groups of parameters, for an optimiser that takes smaller steps with factors and biases."""

from typing import Any, Dict, Iterable, List, Union

from torch import Tensor, nn

SCALED = ("factors", "biases")  # the marks that GroupedParameters sets


def by_group(parameters: Iterable[nn.Parameter]) -> Dict[str, List[nn.Parameter]]:
    """The parameters without a mark as "others", and those marked as "factors" and "biases"."""
    groups: Dict[str, List[nn.Parameter]] = {name: [] for name in ("others", *SCALED)}
    for parameter in parameters:
        mark = getattr(parameter, "param_group", None)
        groups[mark if mark in SCALED else "others"].append(parameter)
    return groups


def parameter_groups(
    parameters: Union[nn.Module, Iterable[nn.Parameter]],
    lr: float,
    factor_scale: float = 0.1,
    bias_scale: float = 1.0,
    **options: Any,
) -> List[Dict[str, Any]]:
    """Groups for any torch optimiser. A change to one factor moves all of W, so factors learn more
    slowly than the rest.

    ::

        optimiser = torch.optim.RMSprop(parameter_groups(model, lr=1e-3), alpha=0.9)

    Args:
        parameters: a model, or parameters of one.
        lr: the learning rate.
        factor_scale: that of the factors is `factor_scale · lr`.
        bias_scale: that of the biases of a KRU, which act at every step, is `bias_scale · lr`.
        options: others of the optimiser, for all groups, such as weight_decay.

    Raises:
        ValueError: a rate or a scale is negative, or there are no parameters.
        TypeError: they are something else, such as pairs of `named_parameters`.
    """
    for name, value in {"lr": lr, "factor_scale": factor_scale, "bias_scale": bias_scale}.items():
        if not value >= 0:
            raise ValueError(f"{name}={value}: must be 0 or more")
    if isinstance(parameters, nn.Module):
        parameters = parameters.parameters()
    parameters = list(parameters)
    for parameter in parameters:
        if not isinstance(parameter, Tensor):
            kind = type(parameter).__name__
            raise TypeError(f"parameters: must be a model or its parameters, not of type {kind}")
    scales = {"others": 1.0, "factors": factor_scale, "biases": bias_scale}
    groups = by_group(parameters)
    made = [
        {"params": members, "lr": lr * scales[name], **options}
        for name, members in groups.items()
        if members
    ]
    if not made:
        raise ValueError("parameters: there are none")
    return made
