"""The records of a training log, and the curves of a metric in them."""

import json
from math import inf, isfinite
from pathlib import Path
from typing import Any, Dict, List, Tuple


def read_log(path: Path) -> List[Dict[str, float]]:
    """The records of a log written by `fairseq-train --log-format json --log-file`.

    Raises:
        ValueError: the file holds no such record.
    """
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):  # fairseq's other lines are plain text
            continue
        if not isinstance(record, dict):
            continue
        records.append({k: float(v) for k, v in record.items() if _is_number(v)})
    if not records:
        raise ValueError(f"{path}: no records; train with --log-format json --log-file {path}")
    return records


def _is_number(value: Any) -> bool:
    try:
        float(value)  # fairseq writes most numbers as strings
    except (TypeError, ValueError, OverflowError):
        return False
    return True


def curves(records: List[Dict[str, float]], metric: str) -> Dict[str, List[Tuple[int, float]]]:
    """The points (update, metric) of "training" and "validation", one for each update.

    Raises:
        ValueError: the log has no such metric.
    """
    found = {}
    for name, key, update in (
        ("training", metric, "num_updates"),
        ("validation", f"valid_{metric}", "valid_num_updates"),
    ):
        # fairseq without the plugin repeats lines; so does a resumed run.
        values = {
            int(r[update]): r[key] for r in records if key in r and isfinite(r.get(update, inf))
        }
        found[name] = sorted(values.items())
    if not any(found.values()):
        keys = {key for record in records for key in record}
        logged = {k.removeprefix("valid_") for k in keys if k.startswith("valid_")} or keys
        known = ", ".join(sorted(logged))
        raise ValueError(f"--metric {metric}: not in the log, which has {known}")
    return found
