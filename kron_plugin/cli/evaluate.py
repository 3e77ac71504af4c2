"""Score a checkpoint on its task: the field's metric beside the trivial baseline."""

import sys
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np
import torch
from fairseq.tasks.language_modeling import LanguageModelingTask
from fairseq.utils import move_to_cuda
from tabulate import tabulate
from tqdm import tqdm

import kron_plugin

from ..checkpoints import named
from ..checks import machine_memory, require
from ..modules.factors import format_factors
from ..restore import build, require_data

kron_plugin.register()

from ..models.cells import kron_layers, penalty_and_deviation, singular_range  # noqa: E402  (needs register)
from ..tasks.base import add_up  # noqa: E402
from .language_model import SymbolScores  # noqa: E402


def evaluate(
    checkpoint: Path,
    state: Dict[str, Any],
    data: Optional[str] = None,
    split: str = "test",
    batch_size: int = 64,
    cpu: bool = False,
) -> Dict[str, Any]:
    """The numbers of the table, from every example of a split once, in batches of any size.

    Args:
        checkpoint, state: a checkpoint's path and its content.
        data: the folder of the data, if not where training found them.

    Raises:
        ValueError, OSError: the data cannot be used; the message says why.
    """
    require_data(checkpoint, state, data)
    model, cfg, task = build(checkpoint, state, data)
    device = torch.device("cpu" if cpu or not torch.cuda.is_available() else "cuda")
    model.to(device)
    task.load_dataset(split, whole=True)
    if isinstance(task, LanguageModelingTask):
        scores = SymbolScores(task, split)
        criterion = scores.criterion()
    else:
        with named(checkpoint, "cannot be evaluated"):
            scores, criterion = task, task.build_criterion(cfg.criterion)
    sums = _run(model, task, criterion, split, batch_size, device)
    return {
        "checkpoint": str(checkpoint),
        "updates": state["optimizer_history"][-1]["num_updates"],
        "task": cfg.task._name,
        "split": split,
        "metrics": [metric._asdict() for metric in scores.metrics(sums)],
        "baseline": scores.baseline(sums)._asdict(),
        "examples": len(task.dataset(split)),
        "predictions": int(sums["sample_size"]),
        "cell": cfg.model.cell,
        "parameters": sum(p.numel() for p in model.parameters()),
        "recurrent_parameters": model.cell.recurrent_parameters(),
        **factors(model),
    }


def _run(
    model, task, criterion, split: str, batch_size: int, device: torch.device
) -> Dict[str, float]:
    """The sums over all batches of the numbers that the criterion logs."""
    dataset = task.dataset(split)
    batches = dataset.batch_by_size(np.arange(len(dataset)), max_sentences=batch_size)
    logs = []
    for batch in tqdm(batches, desc=split, leave=False, disable=not sys.stderr.isatty()):
        _require_room(model.cell.output_size, dataset, batch)
        sample = dataset.collater([dataset[i] for i in batch])
        sample = move_to_cuda(sample) if device.type == "cuda" else sample
        _, _, log = task.valid_step(sample, model, criterion)
        logs.append(log)
    return add_up(logs)


def _require_room(width: int, dataset, batch: Sequence[int]) -> None:
    """Raise a ValueError unless the states of a batch fit into the machine's memory."""
    steps = max(dataset.size(i) for i in batch)
    need, have = 4.0 * width * steps * len(batch), machine_memory()
    require(
        need <= have,
        f"--batch-size: {len(batch)} sequences of {steps} steps take {need:.2g} bytes for their"
        f" states alone, and this machine has {have:.2g}",
    )


def factors(model) -> Dict[str, Any]:
    """The numbers of a cell with factors; empty for other cells."""
    layers = kron_layers(model)
    if not layers:
        return {}
    layer = layers[0]
    backend = layer.backend
    if backend == "auto":
        backend = layer.available_backends()[0]
    return {
        "factors": format_factors(layer.factor_sizes) + (" complex" if layer.complex else " real"),
        "deviation_from_unitary": float(penalty_and_deviation(model)[1]),
        "singular_values_of_W": singular_range(model),
        "backend": backend,
    }


def table(result: Dict[str, Any]) -> str:
    """The result of `evaluate` as a readable table."""
    rows: List[Tuple[str, str]] = []
    for key, value in result.items():
        if key == "metrics":
            rows += [(m["name"], f"{m['value']:.6g} {m['unit']}") for m in value]
        elif key == "baseline":
            rows.append(("trivial baseline", f"{value['value']:.6g} {value['unit']}"))
        elif key == "singular_values_of_W":
            rows.append(("singular values of W", "{:.4g} to {:.4g}".format(*value)))
        else:
            digits = ".3g" if isinstance(value, float) and value < 1 else ".6g"
            text = f"{value:{digits}}" if isinstance(value, float) else f"{value}"
            rows.append((key.replace("_", " "), text))
    return tabulate(rows, tablefmt="plain", disable_numparse=True)
