"""Find settings that differ in one option alone; the report shows them as curves of that option."""

import re
from itertools import groupby
from typing import Any, Callable, Dict, List, NamedTuple, Tuple

from ..checks import option
from .experiments import differing, recipe

Run = Dict[str, Any]
LEAST = 4  # settings of a curve; fewer stay in the table of their task


class Axis(NamedTuple):
    """An axis of a picture, and its value for a run."""

    label: str
    value: Callable[[Run], float]


class Sweep(NamedTuple):
    """An option that the report shows as a curve.

    option: section and name in a record's options.
    panels: x and y of each panel, from left to right; an `Axis` without a label is the headline
        metric on the test set.
    point: the text at a point of the curve.
    """

    name: str
    title: str
    option: Tuple[str, str]
    panels: Tuple[Tuple[Axis, Axis], ...]
    point: Callable[[Run], str]


def _score(run: Run) -> float:
    return run["test"]["metrics"][0]["value"]


def _milliseconds(run: Run) -> float:
    return 1e3 * run["training"]["seconds"] / run["training"]["updates"]


def _sizes(run: Run) -> str:
    """The factor sizes of a run, such as "2⁷" or "4³·2"."""
    runs = ((size, len(list(same))) for size, same in groupby(run["factors"].split()[0].split(",")))
    powers = (f"{size}{str(n).translate(SUPERSCRIPTS) if n > 1 else ''}" for size, n in runs)
    return "·".join(powers)


SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
SCORE = Axis("", _score)
RECURRENT = Axis("recurrent parameters", lambda run: run["recurrent_parameters"])
TIME = Axis("milliseconds per update", _milliseconds)
STRENGTH = Axis("λ", lambda run: run["options"]["criterion"]["unitary_penalty"])
DEVIATION = Axis("max ‖W_fᴴ W_f − I‖", lambda run: run["deviation_from_unitary"])

SWEEPS = (
    Sweep(
        "factor_sizes",
        "Factor sizes",
        ("model", "kron_factors"),
        ((RECURRENT, SCORE), (TIME, SCORE)),
        _sizes,
    ),
    Sweep(
        "unitary_penalty",
        "Strength of the soft unitary constraint",
        ("criterion", "unitary_penalty"),
        ((STRENGTH, SCORE), (STRENGTH, DEVIATION)),
        lambda run: "",
    ),
)


def find_curves(settings: List[List[Run]]) -> List[Tuple[Sweep, List[List[Run]]]]:
    """Each sweep with the settings (lists of runs) that differ in its option alone."""
    curves = []
    for sweep in SWEEPS:
        families: List[List[List[Run]]] = []
        for runs in settings:
            if "factors" not in runs[0]:
                continue
            alike = (family for family in families if _are_alike(family[0][0], runs[0], sweep))
            family = next(alike, None)
            if family is None:
                families.append([runs])
            else:
                family.append(runs)
        order = sweep.panels[0][0].value
        for family in families:
            if len(family) >= LEAST:
                curves.append((sweep, sorted(family, key=lambda runs: order(runs[0]))))
    return curves


def _are_alike(first: Run, second: Run, sweep: Sweep) -> bool:
    """Whether two runs differ in the sweep's option alone."""
    same_words = _other_words(first, sweep) == _other_words(second, sweep)
    return same_words and set(differing(first, second)) <= {sweep.option}


def _other_words(run: Run, sweep: Sweep) -> str:
    return re.sub(rf" {option(sweep.option[1])}[ =]\S+", "", recipe(run))
