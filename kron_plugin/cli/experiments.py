"""The names of a run's setting and model in the report, and comparisons of runs."""

import re
from typing import Any, Dict, List, Tuple

from ..plugins import tasks

READS = {"moduli": "moduli read", "both": "parts and moduli read"}


def setting_name(run: Dict[str, Any]) -> str:
    """The setting's name, such as "copy memory, T = 1000"; published.csv uses the same names."""
    return tasks()[run["task"]].setting(run["options"]["task"])


def model_name(run: Dict[str, Any]) -> str:
    """The cell with its units, such as "KRU(512)", and the unusual parts of its structure."""
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
    sizes += _constraint(run)
    hard = "hard-unitary " if options.get("unitary") == "hard" else ""
    cell = CELLS[run["cell"]].title if run["cell"] in CELLS else run["cell"].upper()
    return f"{hard}{cell}({', '.join(sizes)})"


def _constraint(run: Dict[str, Any]) -> List[str]:
    """What is unusual about the soft penalty of a KRU."""
    from ..criterions.soft_unitary import SoftUnitaryConfig  # it imports fairseq

    usual = SoftUnitaryConfig().unitary_penalty
    strength = run["options"].get("criterion", {}).get("unitary_penalty")
    unitary = run["options"]["model"].get("unitary", "soft")
    if run["cell"] != "kru" or unitary == "hard":
        return []
    if unitary == "none":
        return ["no penalty"]
    return [] if strength in (None, usual) else [f"λ = {strength:g}"]


def improvement(run: Dict[str, Any], split: str = "test") -> float:
    """The gain of the headline metric over the trivial baseline, as a share of the baseline.

    It is comparable between runs of one setting; larger is better.
    """
    metric, baseline = run[split]["metrics"][0], run[split]["baseline"]["value"]
    gain = (metric["value"] - baseline) / (baseline or 1)
    return gain if tasks()[run["task"]].larger_is_better else -gain


def recipe(run: Dict[str, Any]) -> str:
    """The command without its seed and without the beginning that all recipes share."""
    return re.sub(r" --seed[ =]\d+", "", run["command"]).removeprefix("bash recipes/")


def differing(first: Dict[str, Any], second: Dict[str, Any]) -> List[Tuple[str, str]]:
    """Section and name of the options in which two runs differ. An option that a version of the
    recipe lacks does not count."""
    one, other = first["options"], second["options"]
    return [
        (section, name)
        for section in one
        for name in one[section].keys() & other.get(section, {}).keys()
        if one[section][name] != other[section][name]
    ]


def natural(text: str) -> List[Tuple[int, str]]:
    """A key by which T = 200 comes before T = 1000."""
    pieces = re.split(r"(\d+)", text)
    return [(int(piece), "") if piece.isdigit() else (0, piece) for piece in pieces]
