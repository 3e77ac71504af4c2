"""Record a run in one file: its command, machine, learning curve and scores.

`kron-eval report` reads the records. A record also shows how a number was made.
"""

import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import fairseq
import torch

from .. import __version__
from ..checkpoints import named
from ..plugins import require_task
from ..resume import NOTHING_LEFT
from .curve import curves, read_log
from .evaluate import evaluate

POINTS = 200  # of a learning curve, at most
SECTIONS = ("task", "model", "criterion", "optimizer", "lr_scheduler", "optimization")
SCORES = ("metrics", "baseline", "examples", "predictions")


def record(
    checkpoint: Path,
    state: Dict[str, Any],
    log: Path,
    command: str,
    data: Optional[str] = None,
    cpu: bool = False,
) -> Tuple[Dict[str, Any], Dict[str, Any]]:
    """The record of a run, and the result of `evaluate` on the test set that it holds.

    The commit, the machine and the versions are those of this process: call it on the same machine
    right after training.

    Args:
        checkpoint, state: a checkpoint's path and its content.
        log: the file that fairseq-train wrote with --log-format json --log-file.
        command: the command that trains such a model.
        data: the folder of the data, if not where training found them.

    Raises:
        ValueError, OSError: the log or the data cannot be used; the message says why.
    """
    cfg = state["cfg"]
    with named(checkpoint, "cannot be recorded"):
        configured = {"seed": cfg["common"]["seed"], "options": options(cfg)}
        on_cpu = cpu or cfg["common"]["cpu"]
        json.dumps(configured)
    require_task(checkpoint, cfg["task"]["_name"])  # fairseq's language_modeling has no setting
    entries = read_log(log)
    scored = {
        split: evaluate(checkpoint, state, data, split, cpu=cpu) for split in ("valid", "test")
    }
    test = scored["test"]
    metric = test["metrics"][0]["name"]
    try:
        curve = {name: thinned(points) for name, points in curves(entries, metric).items()}
    except ValueError as error:
        raise ValueError(f"--log {log}: {error}") from error
    model = {k: v for k, v in test.items() if k not in {*SCORES, "checkpoint", "updates", "split"}}
    run = {
        "command": command,
        "seed": configured["seed"],
        "commit": commit(),
        "machine": machine(on_cpu),
        "versions": versions(),
        **model,
        "options": configured["options"],
        "training": training(entries, log),
        "curve": {"metric": metric, **curve},
        "checkpoint_updates": test["updates"],
        **{split: {key: scored[split][key] for key in SCORES} for split in scored},
    }
    return run, test


def thinned(points: List[Tuple[int, float]]) -> List[Tuple[int, float]]:
    """At most `POINTS` of the points, evenly spaced, with the first and the last."""
    if len(points) <= POINTS:
        return points
    return [points[round(i * (len(points) - 1) / (POINTS - 1))] for i in range(POINTS)]


def training(entries: List[Dict[str, float]], log: Path) -> Dict[str, Any]:
    """The updates and seconds of a log's training, and whether it finished."""
    # fairseq's "wall" continues when a training is resumed. In an epoch's own statistics every key
    # has the prefix "train_"; in other entries "train_wall" is something else.
    epochs = [e for e in entries if "train_num_updates" in e]
    updates = [e["num_updates"] for e in entries if "num_updates" in e]
    updates += [e["train_num_updates"] for e in epochs]
    seconds = [e["wall"] for e in entries if "wall" in e]
    seconds += [e["train_wall"] for e in epochs if "train_wall" in e]
    said = log.read_text(encoding="utf-8")
    return {
        "updates": int(max(updates, default=0)),
        "seconds": max(seconds, default=None),
        # NOTHING_LEFT: the run was killed after its last checkpoint, and then called again.
        "finished": "done training in" in said or NOTHING_LEFT in said,
    }


def options(cfg: Dict[str, Dict[str, Any]]) -> Dict[str, Any]:
    """The options of a checkpoint's training that bear on the result."""
    chosen = {
        section: {k: v for k, v in cfg[section].items() if v is not None} for section in SECTIONS
    }
    chosen["dataset"] = {"batch_size": cfg["dataset"]["batch_size"]}
    if "data" in chosen["task"]:  # its name is the data set, its place the machine's
        chosen["task"]["data"] = Path(chosen["task"]["data"]).name
    return chosen


def commit() -> Optional[str]:
    """The commit of this package's checkout, "-dirty" if changed since; None without a checkout."""
    git = ("git", "-C", str(Path(__file__).parent))
    try:
        # A package installed inside another checkout is not one of its files.
        tracked = (*git, "ls-files", "--error-unmatch", Path(__file__).name)
        subprocess.run(tracked, check=True, capture_output=True)
        describe = (*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
        return subprocess.run(describe, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def machine(cpu: bool) -> Dict[str, Any]:
    """The processor, its cores, and the GPU if training used it."""
    processor = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        processor = names[0].split(":", 1)[1].strip() if names else processor
    gpu = None if cpu or not torch.cuda.is_available() else torch.cuda.get_device_name()
    return {"processor": processor, "cores": os.cpu_count(), "gpu": gpu}


def versions() -> Dict[str, str]:
    """The versions of the plugin and of what it runs on."""
    return {
        "kron_plugin": __version__,
        "torch": torch.__version__,
        "fairseq": fairseq.__version__,
        "python": platform.python_version(),
    }


def as_text(run: Dict[str, Any]) -> str:
    """A record as JSON, with one line for each key."""
    lines = (f"  {json.dumps(k)}: {json.dumps(v, ensure_ascii=False)}" for k, v in run.items())
    return "{\n" + ",\n".join(lines) + "\n}\n"
