"""Draw every picture: of a training log, of many runs, of music."""

from pathlib import Path
from typing import Any, Dict, List, Optional

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..tasks.rolls import KEYS, LOWEST_NOTE
from .arguments import written
from .curve import curves
from .experiments import model_name, natural, recipe, setting_name
from .sweeps import Sweep


def draw_log(records: List[Dict[str, float]], metric: str, title: str, output: Path) -> None:
    """Write a PNG of the metric over the updates, in training and validation, and its baseline.

    Raises:
        ValueError: the log has no such metric.
    """
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for (name, points), style in zip(curves(records, metric).items(), ("-", "o-"), strict=True):
        if points:
            axes.plot(*zip(*points, strict=True), style, label=name, linewidth=1.2, markersize=4)
    baselines = [r[k] for r in records for k in ("baseline", "valid_baseline") if k in r]
    if baselines:  # fairseq's own tasks have none
        label = f"trivial baseline {baselines[-1]:.4g}"
        axes.axhline(baselines[-1], color="grey", linestyle="--", label=label)
    lines: List[Any] = list(axes.lines)
    if min(min(line.get_ydata()) for line in lines) > 0:
        axes.set_yscale("log")
    axes.set(xlabel="updates", ylabel=metric, title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    save(figure, output, dpi=150)


def draw_roll(
    roll: np.ndarray,  # shape: (T, 88)
    given: int,
    output: Path,
) -> None:
    """Write a PNG of a piano roll, with time to the right and keys upwards. A line marks the end of
    the `given` steps of the prompt."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots()
    extent = (0, len(roll), LOWEST_NOTE, LOWEST_NOTE + KEYS)
    axes.imshow(roll.T, origin="lower", aspect="auto", cmap="Greys", extent=extent)
    axes.axvline(given, color="tab:orange", label="end of the prompt")
    axes.set(xlabel="time steps", ylabel="MIDI note")
    axes.legend(loc="upper right")
    save(figure, output, dpi=150)


def draw_curves(settings: List[List[Dict[str, Any]]], output: Path) -> None:
    """Write a PNG of the learning curves in training and the trivial baseline.

    Args:
        settings: the runs of one task, by setting. A setting has one colour. Settings with the same
            `setting_name` share a panel.
    """
    titles = sorted({setting_name(runs[0]) for runs in settings}, key=natural)
    figure = Figure(figsize=(4.2 * len(titles), 4), layout="constrained")
    panels = figure.subplots(1, len(titles), squeeze=False)[0]
    for axes, title in zip(panels, titles, strict=True):
        _draw_panel(axes, [runs for runs in settings if setting_name(runs[0]) == title])
        axes.set_title(title)
    save(figure, output)


def _draw_panel(axes: Axes, settings: List[List[Dict[str, Any]]]) -> None:
    names = [model_name(runs[0]) for runs in settings]
    for i, (name, runs) in enumerate(zip(names, settings, strict=True)):
        label: Optional[str] = name if names.count(name) == 1 else f"{name}, {recipe(runs[0])}"
        for run in runs:
            points = run["curve"]["training"]
            axes.plot(*zip(*points, strict=True), color=f"C{i}", label=label, linewidth=1)
            label = None  # one legend entry for all seeds
    baseline = settings[0][0]["test"]["baseline"]
    axes.axhline(baseline["value"], color="grey", linestyle="--", label="trivial baseline")
    axes.set(xlabel="updates", ylabel=baseline["unit"], yscale="log")
    axes.grid(alpha=0.3)
    # The legend is below the panel: on the panel it would hide the curves of many settings.
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncol=2, fontsize="small")


def draw_sweep(sweep: Sweep, settings: List[List[Dict[str, Any]]], output: Path) -> None:
    """Write a PNG of the curves of an option: the mean of each setting's runs, with a bar from the
    worst to the best, and a mark for every run."""
    first = settings[0][0]
    metric = first["test"]["metrics"][0]
    figure = Figure(figsize=(4.2 * len(sweep.panels), 3.2), layout="constrained")
    panels = figure.subplots(1, len(sweep.panels), squeeze=False)[0]
    for axes, (x, y) in zip(panels, sweep.panels, strict=True):
        at = [np.mean([x.value(run) for run in runs]) for runs in settings]
        values = [[y.value(run) for run in runs] for runs in settings]
        means = np.array([np.mean(row) for row in values])
        bars = np.array([[np.min(row) for row in values], [np.max(row) for row in values]])
        order = np.argsort(at)
        axes.errorbar(
            np.take(at, order),
            means[order],
            yerr=np.abs(bars - means)[:, order],
            marker="o",
            markersize=4,
            capsize=3,
        )
        for place, row, runs in zip(at, values, settings, strict=True):
            axes.plot([place] * len(row), row, ".", color="grey", markersize=3)
            point = (place, np.mean(row))
            text = sweep.point(runs[0])
            axes.annotate(text, point, (3, 3), textcoords="offset points", fontsize=7)
        label = y.label or f"{metric['name']}, {metric['unit']} (test)"
        axes.set(xlabel=x.label, xscale="log", ylabel=label)
        _set_range(axes, bars, is_score=not y.label, baseline=first["test"]["baseline"]["value"])
        axes.margins(x=0.12)  # room for the text beside the last point
        axes.grid(alpha=0.3)
    seeds = max(len(runs) for runs in settings)
    figure.suptitle(f"{setting_name(first)}, {seeds} seed{'s' * (seeds > 1)}", fontsize=10)
    save(figure, output)


def _set_range(axes: Axes, values: np.ndarray, is_score: bool, baseline: float) -> None:
    """A range that does not magnify small differences: of a tenth of what was gained over the
    trivial baseline at least, or if values differ much, of whole decades."""
    low, high = float(values.min()), float(values.max())
    if not is_score or 0 < 20 * low < high:
        axes.set(yscale="log", ylim=(low / 3, high * 3))
        return
    gained = max(abs(low - baseline), abs(high - baseline))
    middle, half = (low + high) / 2, max(0.6 * (high - low), 0.05 * gained)
    axes.set_ylim(middle - half, middle + half)


def save(figure: Figure, output: Path, dpi: int = 100) -> None:
    with written(output) as unfinished:
        # The library's version is left out, so that the same data give the same bytes.
        figure.savefig(unfinished, dpi=dpi, format="png", metadata={"Software": None})
