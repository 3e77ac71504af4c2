"""What the report has to know of each experiment, and the names it gives to settings and models."""

import re
from typing import Any, Dict, List, NamedTuple, Tuple

CELLS = {"kru": "KRU", "kru_lstm": "KRU-LSTM", "rnn": "RNN", "lstm": "LSTM", "gru": "GRU"}
READS = {"moduli": "moduli read", "both": "parts and moduli read"}
TEXTS = {"ptb": "Penn Treebank"}  # by the folder of a text


class Experiment(NamedTuple):
    """title: of the section. picture: what its learning curves show, if they are drawn."""

    title: str
    picture: str = ""


EXPERIMENTS = {
    "copy_memory": Experiment("Copy memory", "bits per position over the updates"),
    "adding": Experiment("Adding", "mean squared error over the updates"),
    "pixel_mnist": Experiment("Pixel-by-pixel MNIST"),
    "char_lm": Experiment("Text by characters"),
    "music": Experiment("Polyphonic music"),
}


def setting_name(run: Dict[str, Any]) -> str:
    """What was learned, such as "copy memory, T = 1000"; published.csv uses the same names."""
    options = run["options"]["task"]
    if run["task"] == "copy_memory":
        return f"copy memory, T = {options['delay']}"
    if run["task"] == "adding":
        return f"adding, T = {options['steps']}"
    if run["task"] == "pixel_mnist":
        return "permuted pixel MNIST" if options["permute"] else "pixel MNIST"
    if run["task"] == "char_lm":
        return f"{TEXTS.get(options['data'], options['data'])} characters"
    return options.get("music_set", options["data"])


def model_name(run: Dict[str, Any]) -> str:
    """The cell with its units, such as "KRU(512)", and what of its structure is unusual."""
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
    return f"{hard}{CELLS[run['cell']]}({', '.join(sizes)})"


def improvement(run: Dict[str, Any], split: str = "test") -> float:
    """By which share of the trivial baseline the headline metric is better; comparable between
    runs of one setting, larger is better."""
    metric, baseline = run[split]["metrics"][0], run[split]["baseline"]["value"]
    gain = (metric["value"] - baseline) / (baseline or 1)
    return gain if metric["name"] == "accuracy" else -gain


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
