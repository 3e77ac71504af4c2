"""Replace the recurrent matrices of a trained LSTM or RNN by the nearest Kronecker products."""

import re
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Sequence, Tuple

import torch
from tabulate import tabulate
from torch import Tensor

from ..checkpoints import named
from ..checks import in_options, require
from ..modules import nearest_kronecker, parse_factors
from ..modules.factors import format_factors
from ..ops import dense

# The recurrent matrices of torch's layers, in the order in which they are stacked.
MATRICES = {"lstm": ("input", "forget", "cell", "output"), "rnn": ("recurrent",)}
# The new cell's options. No penalty: the learned matrices are not and need not become unitary.
OPTIONS: Dict[str, Dict[str, Any]] = {
    "lstm": {"cell": "kru_lstm", "unitary": "none"},
    "rnn": {"cell": "kru", "kron_real": True, "kron_activation": "tanh", "unitary": "none"},
}


class Matrix(NamedTuple):
    """A recurrent matrix W beside its factors.

    error: ‖W − W_0 ⊗ …‖_F / ‖W‖_F.
    before, after: the count of numbers that describe it.
    """

    name: str
    error: float
    before: int
    after: int


def compress(
    checkpoint: Path, state: Dict[str, Any], factors: str
) -> Tuple[Dict[str, Any], List[Matrix]]:
    """A checkpoint's content with factors for its recurrent matrices, and how well they fit.

    The optimiser's state is left out; further training starts a new one.

    Args:
        checkpoint, state: a checkpoint's path and its content.
        factors: sizes whose products are its --hidden-size.

    Raises:
        ValueError: the cell cannot be compressed, or the sizes do not fit.
    """
    options = state["cfg"]["model"]
    with named(checkpoint, "cannot be compressed"):
        cell, hidden_size = str(options["cell"]), options["hidden_size"]
        known = " and ".join(MATRICES)
        require(cell in MATRICES, f"its cell is {cell}; those of {known} can be compressed")
    changed = {**options, **OPTIONS[cell], "kron_factors": _sizes(factors, hidden_size)}
    with named(checkpoint, "cannot be compressed"):
        model, matrices = _compress_layers(state["model"], cell, changed["kron_factors"])
    cfg = {**state["cfg"], "model": changed}
    return {**state, "cfg": cfg, "model": model, "last_optimizer_state": None}, matrices


def _sizes(factors: str, hidden_size: int) -> str:
    """The sizes in the form of the model's option."""
    try:
        return format_factors(parse_factors(factors, hidden_size))
    except (ValueError, TypeError) as error:
        words = {"factors": "--factors", "hidden_size": "its --hidden-size"}
        raise ValueError(in_options(str(error), words)) from error


def _compress_layers(
    model: Dict[str, Tensor], cell: str, factors: str
) -> Tuple[Dict[str, Tensor], List[Matrix]]:
    """The parameters under the new cell's names."""
    directions = 2 if any(name.endswith("_reverse") for name in model) else 1
    changed = {name: value for name, value in model.items() if ".rnn." not in f".{name}"}
    matrices: List[Matrix] = []
    for name in model:
        found = re.fullmatch(r"(.*)rnn\.weight_hh(_l(\d+)(_reverse)?)", name)
        if found is None:
            continue
        prefix, suffix, layer, is_reverse = found.groups()
        index = directions * int(layer) + bool(is_reverse)
        kinds = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        parameters = [model[f"{prefix}rnn.{kind}{suffix}"] for kind in kinds]
        new, fits = _compress_layer(parameters, MATRICES[cell], factors)
        changed.update({f"{prefix}layers.{index}.{key}": value for key, value in new.items()})
        matrices += [fit._replace(name=f"{prefix}layers.{index} {fit.name}") for fit in fits]
    return changed, matrices


def _compress_layer(
    parameters: List[Tensor],  # shape: (gates · N, input_size), (gates · N, N), (gates · N,) twice
    names: Sequence[str],
    factors: str,
) -> Tuple[Dict[str, Tensor], List[Matrix]]:
    """One of torch's layers as one of ours."""
    weight_ih, weight_hh, bias_ih, bias_hh = parameters
    fits, found = [], []
    for name, matrix in zip(names, weight_hh.chunk(len(names)), strict=True):
        nearest = nearest_kronecker(matrix, factors)
        difference = torch.linalg.norm(matrix.double() - dense([w.double() for w in nearest]))
        error = float(difference / torch.linalg.norm(matrix.double()))
        fits.append(Matrix(name, error, matrix.numel(), sum(w.numel() for w in nearest)))
        found += nearest
    new = {f"factors.{f}": w for f, w in enumerate(found)}
    new["weight"] = weight_ih.t().contiguous()
    new["bias"] = bias_ih + bias_hh
    if len(names) == 1:  # KRU learns its initial state; torch's RNN starts at 0
        new["h0"] = torch.zeros_like(bias_ih)
    return new, fits


def table(state: Dict[str, Any], new: Dict[str, Any], matrices: List[Matrix], output: Path) -> str:
    """A readable summary of what `compress` did, and of how to train `output` further."""
    rows = [(m.name, f"{m.error:.4f}", m.before, m.after) for m in matrices]
    totals = [sum(p.numel() for p in content["model"].values()) for content in (state, new)]
    rows.append(("all parameters", "", *totals))
    headers = ("matrix", "relative error", "before", "after")
    options = new["cfg"]["model"]
    flags = ["--cell", str(options["cell"]), "--kron-factors", options["kron_factors"]]
    if options["cell"] == "kru":
        flags += ["--kron-real", "--kron-activation", "tanh", "--unitary", "none"]
    return (
        f"{tabulate(rows, headers, tablefmt='plain', disable_numparse=True)}\n\n"
        "train it further with the options of its training, but another --save-dir and\n"
        f"    --finetune-from-model {output} {' '.join(flags)}"
    )
