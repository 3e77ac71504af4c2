"""Make RESULTS.md from the records alone: every recorded run beside the published numbers.

The same records give the same bytes. Runs of one setting have the same command, apart from the
seed; the report shows their mean and their worst.
"""

import csv
import json
from collections import defaultdict
from itertools import combinations
from os.path import relpath
from pathlib import Path
from typing import Any, Dict, List

from tabulate import tabulate

from ..plugins import require_task, tasks
from .arguments import written
from .experiments import differing, improvement, model_name, natural, recipe, setting_name
from .pictures import draw_curves, draw_sweep
from .sweeps import find_curves

NEEDED = {  # keys of a record, and keys of each of its parts
    **dict.fromkeys(("command", "seed", "commit", "versions", "task", "cell"), ()),
    **dict.fromkeys(("parameters", "recurrent_parameters"), ()),
    "machine": ("processor", "cores", "gpu"),
    "options": ("task", "model"),
    "training": ("updates", "seconds", "finished"),
    "curve": ("training",),
    "valid": ("metrics", "baseline"),
    "test": ("metrics", "baseline"),
}
PUBLISHED = ["task", "setting", "model", "parameters", "test", "source", "url"]
HEADERS = ["setting", "model", "parameters (recurrent)", "test", "source"]
INTRODUCTION = """\
# Results

Made by `kron-eval report` from the records of the runs in `{folder}`, one file a run, and the
published numbers in `published.csv` there. With several seeds the numbers are means, the worst in
brackets; with one they are that one's. A footnote tells how a row of ours was made: the recipe, as
it was at the commit that the record names, the records by seed, and the training, which includes
what came after the checkpoint, the best on validation. The weights of a row can be scored again,
as in `kron-eval NAME`; a row marked † has none.
"""

Run = Dict[str, Any]


def report(folder: Path, output: Path) -> None:
    """Write the text to `output`, and the pictures into the folder of the records.

    Raises:
        ValueError: the folder holds no records, or a wrong one; the message names the file.
    """
    runs = read_runs(folder)
    settings = by_setting(runs)
    published = read_published(folder / "published.csv")
    texts = [INTRODUCTION.format(folder=_link(folder, output))]
    unknown = sum(run["commit"] is None for run in runs)
    if unknown:
        texts.append(f"{unknown} of the {len(runs)} records do not know their commit (`null`).\n")
    curves = find_curves(settings)
    swept = [same for _, family in curves for same in family]
    # In the order of the published numbers, then of the records.
    for name in dict.fromkeys(one["task"] for one in [*published, *runs]):
        ours = [same for same in settings if same[0]["task"] == name and same not in swept]
        others = [row for row in published if row["task"] == name]
        if ours:
            texts += _section(name, ours, others, folder, output)
    for sweep, family in curves:
        name = setting_name(family[0][0])
        picture = folder / f"{sweep.name}_{family[0][0]['task']}.png"
        draw_sweep(sweep, family, picture)
        texts.append(f"## {sweep.title}: {name}\n")
        texts += _table(family, [], output)
        texts.append(f"![{sweep.title}: {name}]({_link(picture, output)})\n")
    texts.append("## Failed settings\n")
    texts.append(_failures(settings, output))
    with written(output) as unfinished:
        unfinished.write_text("\n".join(texts), encoding="utf-8")


def _section(
    name: str, ours: List[List[Run]], others: List[Dict[str, str]], folder: Path, output: Path
) -> List[str]:
    """The report's section on a task."""
    task = tasks()[name]
    title = task.title or name
    texts = [f"## {title}\n", *_table(ours, others, output)]
    if task.learning_curves:
        picture = folder / f"{name}.png"
        draw_curves(ours, picture)
        unit = ours[0][0]["test"]["metrics"][0]["unit"]
        texts.append(f"![{title}: {unit} over the updates]({_link(picture, output)})\n")
    return texts


def read_runs(folder: Path) -> List[Run]:
    """The records of a folder, each with its "path"."""
    runs = []
    for path in sorted(folder.glob("*.json")):
        try:
            run = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path}: not JSON: {error}") from error
        missing = _missing(run)
        if missing:
            raise ValueError(f"{path}: lacks {', '.join(missing)}; make it with kron-eval record")
        require_task(path, run["task"])
        runs.append({**run, "path": path})
    if not runs:
        raise ValueError(f"--results {folder}: no records there; make some with kron-eval record")
    return runs


def _missing(run: Any) -> List[str]:
    """The needed keys that a record lacks."""
    if not isinstance(run, dict):
        return sorted(NEEDED)
    missing = NEEDED.keys() - run.keys()
    for part in NEEDED.keys() & run.keys():
        have = run[part] if isinstance(run[part], dict) else {}
        missing |= {f"{part}.{key}" for key in NEEDED[part] if key not in have}
    return sorted(missing)


def read_published(path: Path) -> List[Dict[str, str]]:
    """The rows of published.csv, in its order."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        if rows.fieldnames != PUBLISHED:
            raise ValueError(f"{path}: its first line must be {','.join(PUBLISHED)}")
        return list(rows)


def by_setting(runs: List[Run]) -> List[List[Run]]:
    """The runs of each setting, which differ only in their seed, sorted by it.

    Raises:
        ValueError: runs of one command were trained with different options.
    """
    settings = defaultdict(list)
    for run in runs:
        settings[recipe(run)].append(run)
    for same in settings.values():
        same.sort(key=lambda run: (run["seed"], run["path"]))
        _require_same_options(same)
    return list(settings.values())


def _require_same_options(runs: List[Run]) -> None:
    """Raise a ValueError if the recipe has changed between two runs."""
    for first, second in combinations(runs, 2):
        for section, name in differing(first, second):
            values = [run["options"][section][name] for run in (first, second)]
            raise ValueError(
                f"{second['path']}: trained with {name}={values[1]}, but {first['path']} with"
                f" {values[0]} by the same command; run both with one version of the recipe"
            )


def _table(ours: List[List[Run]], others: List[Dict[str, str]], output: Path) -> List[str]:
    """The rows by setting, our runs, then the published numbers; and our rows' footnotes."""
    rows = [_row(runs) for runs in ours]
    for row in others:
        source = f"[{row['source']}]({row['url']})"
        rows.append([row["setting"], row["model"], row["parameters"], row["test"], source])
    rows.sort(key=lambda row: natural(row[0]))
    notes = sorted((f"[^{_note(runs)}]: {_made(runs, output)}" for runs in ours), key=natural)
    return [
        tabulate(rows, HEADERS, tablefmt="github", disable_numparse=True) + "\n",
        "\n".join(notes) + "\n",
    ]


def _row(runs: List[Run]) -> List[str]:
    run = runs[0]
    unit = run["test"]["metrics"][0]["unit"]
    scores = [f"{_summary(runs, 'test', 0)} {unit}"]
    for i, metric in enumerate(run["test"]["metrics"][1:], start=1):
        scores.append(f"{_mean(runs, 'test', i):.4g} {metric['unit']}")
    return [
        setting_name(run),
        model_name(run),
        f"{run['parameters']:,} ({run['recurrent_parameters']:,})",
        ", ".join(scores),
        f"ours{'' if any(map(_has_weights, runs)) else ' †'}[^{_note(runs)}]",
    ]


def _note(runs: List[Run]) -> str:
    """The name of a row's footnote."""
    return runs[0]["path"].stem


def _made(runs: List[Run], output: Path) -> str:
    """How the runs of a row were made."""
    baseline = f"{runs[0]['test']['baseline']['value']:.4g}"
    weights = [f"`{run['path'].stem}`" for run in runs if _has_weights(run)]
    return "; ".join(
        [
            f"`{recipe(runs[0])}`",
            _seeds(runs, output),
            f"validation {_summary(runs, 'valid', 0)}, trivial baseline {baseline}",
            _training(runs),
            _machines(runs),
            *([f"weights {', '.join(weights)}"] if weights else []),
        ]
    )


def _has_weights(run: Run) -> bool:
    """Whether the weights of a run are kept, in the folder `models` beside that of the records."""
    return (run["path"].parent.parent / "models" / f"{run['path'].stem}.pt").is_file()


def _mean(runs: List[Run], split: str, metric: int) -> float:
    return sum(run[split]["metrics"][metric]["value"] for run in runs) / len(runs)


def _summary(runs: List[Run], split: str, metric: int) -> str:
    """The score of one run, or the mean and the worst of several."""
    mean = f"{_mean(runs, split, metric):.4g}"
    if len(runs) == 1:
        return mean
    worst = min(runs, key=lambda run: improvement(run, split))
    return f"{mean} (worst {worst[split]['metrics'][metric]['value']:.4g})"


def _training(runs: List[Run]) -> str:
    """Updates and mean time."""
    updates = f"{max(run['training']['updates'] for run in runs):,} updates"
    seconds = [run["training"]["seconds"] for run in runs]
    return updates if None in seconds else f"{updates}, {_duration(sum(seconds) / len(seconds))}"


def _machines(runs: List[Run]) -> str:
    machines = [run["machine"] for run in runs]
    names = {m["gpu"] or f"{m['processor']}, {m['cores']} cores" for m in machines}
    return " and ".join(sorted(names))


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _seeds(runs: List[Run], output: Path) -> str:
    links = ", ".join(f"[{run['seed']}]({_link(run['path'], output)})" for run in runs)
    return f"{'seed' if len(runs) == 1 else 'seeds'} {links}"


def _failures(settings: List[List[Run]], output: Path) -> str:
    """A line for each setting in which a run ended early or learned nothing."""
    lines = []
    for runs in settings:
        for problem, failed in (
            ("no better than the trivial baseline", [r for r in runs if not improvement(r) > 0.1]),
            ("training ended early", [r for r in runs if not r["training"]["finished"]]),
        ):
            if failed:
                name = f"{setting_name(runs[0])}, {model_name(runs[0])}, `{recipe(runs[0])}`"
                share = f"{len(failed)} of {len(runs)} runs, {_seeds(failed, output)}"
                lines.append(f"- {name}: {problem} in {share}.")
    return "\n".join(lines or ["None of the recorded runs."]) + "\n"


def _link(path: Path, output: Path) -> str:
    return Path(relpath(path, output.parent)).as_posix()
