"""The structure of a checkpoint of fairseq-train, checked once before it is used."""

from argparse import Namespace
from collections.abc import Mapping
from numbers import Integral, Number
from typing import Any, Callable, Dict, Optional

import numpy as np
from torch import Tensor

from .checks import require

Check = Callable[[Any, str], None]  # arguments: a value and its place in the checkpoint
NOTHING = type(None)


def of(*kinds: type) -> Check:
    """A value of one of these types; True and False are not integers."""

    def check(value: Any, place: str) -> None:
        fits = isinstance(value, kinds) and not (kinds == (Integral,) and isinstance(value, bool))
        wanted = " or ".join(kind.__name__ for kind in kinds)
        require(fits, f"{place} is of type {type(value).__name__}, and should be {wanted}")

    return check


def table(needed: Dict[str, Check], others: Optional[Dict[str, Check]] = None) -> Check:
    """A mapping with the keys `needed`, and perhaps `others` and more."""

    def check(value: Any, place: str) -> None:
        of(Mapping)(value, place)
        for key in needed:
            require(key in value, f"{place} has no {key!r}")
        for key, inner in {**needed, **(others or {})}.items():
            if key in value:
                inner(value[key], f"{place}[{key!r}]")

    return check


def each(inner: Check) -> Check:
    """A mapping from strings to values that pass `inner`."""

    def check(value: Any, place: str) -> None:
        of(Mapping)(value, place)
        for key in value:
            of(str)(key, f"a key of {place}")
            inner(value[key], f"{place}[{key!r}]")

    return check


def several(inner: Check, least: int = 0) -> Check:
    """A list of at least `least` values that pass `inner`."""

    def check(value: Any, place: str) -> None:
        of(list)(value, place)
        require(len(value) >= least, f"{place} is empty")
        for i, element in enumerate(value):
            inner(element, f"{place}[{i}]")

    return check


def last(inner: Check) -> Check:
    """A list whose last value passes `inner`; fairseq reads no other."""

    def check(value: Any, place: str) -> None:
        several(lambda *_: None, least=1)(value, place)
        inner(value[-1], f"{place}[-1]")

    return check


def row(*inner: Check) -> Check:
    """A tuple with one value for each check."""

    def check(value: Any, place: str) -> None:
        of(tuple)(value, place)
        require(len(value) == len(inner), f"{place} has {len(value)} values, not {len(inner)}")
        for i, check_part in enumerate(inner):
            check_part(value[i], f"{place}[{i}]")

    return check


def maybe(inner: Check, other: type = NOTHING) -> Check:
    """None, a value that passes `inner`, or an unchecked value of the type `other`."""
    return lambda value, place: None if isinstance(value, (NOTHING, other)) else inner(value, place)


def count(value: Any, place: str) -> None:
    of(Integral)(value, place)
    require(value >= 0, f"{place} is {value}, and should be 0 or more")


def parameter(value: Any, place: str) -> None:
    """A tensor, or the value of a module's `get_extra_state`."""
    if not place.endswith("_extra_state']"):
        of(Tensor)(value, place)


def meter(value: Any, place: str) -> None:
    """The state of a meter; fairseq creates it by the name of its class."""
    row(of(Integral), of(str), of(str), each(VALUE))(value, place)
    require(value[2].endswith("Meter"), f"{place} is no meter")


NUMBER = of(Number, Tensor)  # a sum over several workers is a tensor
VALUE = maybe(of(Number, Tensor, np.ndarray))
NAMED = maybe(table({"_name": of(str)}), Namespace)  # older parts of fairseq keep a Namespace
HISTORY = table(
    {
        "criterion_name": of(str),
        "optimizer_name": of(str),
        "lr_scheduler_state": of(Mapping),
        "num_updates": count,
    },
)
OPTIMIZER = table(
    {},
    {
        "state": of(Mapping),
        "param_groups": several(table({"params": several(count)})),
        "fp32_params": several(of(Tensor)),
        "loss_scale": NUMBER,
    },
)
ITERATOR = table(
    {"epoch": count}, {"iterations_in_epoch": count, "shuffle": of(bool, Number), "len": count}
)
EXTRA = table(
    {},
    {
        "train_iterator": maybe(ITERATOR),
        "metrics": each(several(meter)),
        "previous_training_time": NUMBER,
        "val_loss": VALUE,
        "best": VALUE,
        "ema": each(of(Tensor)),
    },
)
CHECKPOINT = table(
    {
        "model": each(parameter),
        "optimizer_history": last(HISTORY),
        "extra_state": EXTRA,
    },
    {
        "args": maybe(of(Namespace)),
        "cfg": maybe(table({"model": NAMED, "task": NAMED})),
        "criterion": maybe(each(of(Tensor))),
        "task_state": of(Mapping),
        "last_optimizer_state": maybe(OPTIMIZER),
    },
)


def check(state: Any) -> None:
    """Raise a ValueError unless this is the content of a checkpoint; it names the wrong part."""
    CHECKPOINT(state, "checkpoint")
    require(
        state.get("cfg") is not None or state.get("args") is not None,
        "checkpoint has no options, neither 'cfg' nor 'args'",
    )
