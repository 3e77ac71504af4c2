"""What the report says of a run: its task, its setting and its model."""

import re
from typing import Any, Dict, List, Tuple

from .plugins import tasks

READS = {"moduli": "moduli read", "both": "parts and moduli read"}


def setting_name(run: Dict[str, Any]) -> str:
    """What was learned, such as "copy memory, T = 1000"; published.csv uses the same names."""
    return tasks()[run["task"]].setting(run["options"]["task"])


def model_name(run: Dict[str, Any]) -> str:
    """The cell with its units, such as "KRU(512)", and what of its structure is unusual."""
    from ..modules import CELLS  # torch takes two seconds

    options = run["options"]["model"]
    sizes = [f"{options['hidden_size']}"]
    if options.get("num_layers", 1) > 1:
        sizes.append(f"{options['num_layers']} layers")
    if "factors" in run:
        factors, field = run["factors"].split()
        if set(factors.split(",")) != {"2"}:
            sizes.append(f"factors {factors}")
        if run["cell"] == "kru" and field == "real":
            sizes.append("real")
    if options.get("readout") in READS:
        sizes.append(READS[options["readout"]])
    hard = "hard-unitary " if options.get("unitary") == "hard" else ""
    cell = CELLS[run["cell"]].title if run["cell"] in CELLS else run["cell"].upper()
    return f"{hard}{cell}({', '.join(sizes)})"


def improvement(run: Dict[str, Any], split: str = "test") -> float:
    """By which share of the trivial baseline the headline metric is better; comparable between
    runs of one setting, larger is better."""
    metric, baseline = run[split]["metrics"][0], run[split]["baseline"]["value"]
    gain = (metric["value"] - baseline) / (baseline or 1)
    return gain if tasks()[run["task"]].larger_is_better else -gain


def recipe(run: Dict[str, Any]) -> str:
    """The command without the seed, and without what is the same in all recipes."""
    return re.sub(r" --seed[ =]\d+", "", run["command"]).removeprefix("bash recipes/")


def differing(first: Dict[str, Any], second: Dict[str, Any]) -> List[Tuple[str, str]]:
    """Section and name of the options in which two runs differ; one that a version of the recipe
    lacks does not count."""
    one, other = first["options"], second["options"]
    return [
        (section, name)
        for section in one
        for name in one[section].keys() & other.get(section, {}).keys()
        if one[section][name] != other[section][name]
    ]


def natural(text: str) -> List[Tuple[int, str]]:
    """A key by which T = 200 comes before T = 1000."""
    parts = re.split(r"(\d+)", text)
    return [(int(part), "") if part.isdigit() else (0, part) for part in parts]
