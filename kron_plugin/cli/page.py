"""Draw the page of an inspection."""

from itertools import cycle
from pathlib import Path
from textwrap import fill
from typing import Any, Dict, Iterator, Tuple

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .inspect import Inspection
from .pictures import save

# Okabe and Ito's colours, which colour-blind people tell apart; line styles differ too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
STYLES = ("-", "--", "-.", ":")
LEAST = 1e-12  # of the gradients that are drawn
WIDE = 30  # times the smallest singular value is the largest, for a logarithmic axis
WIDTH = 100  # characters of a line of the page
FONTS: Dict[Any, Any] = {"font.size": 13, "axes.titlesize": 15, "figure.titlesize": 19}


def draw(seen: Inspection, output: Path) -> None:
    """Write an inspection as a PNG: spectra above, then gradients, then states."""
    with rc_context(FONTS):
        figure = Figure(figsize=(11, 13), layout="constrained")
        figure.suptitle(seen.title, parse_math=False)
        about = "\n".join(fill(line, WIDTH) for line in seen.about.splitlines())
        figure.supxlabel(about, fontsize=13, parse_math=False)
        panels: Dict[str, Any] = figure.subplot_mosaic(
            [["eigenvalues", "singular values"], ["gradients"] * 2, ["states"] * 2],
            height_ratios=(4.6, 4, 3.2),
        )
        _draw_eigenvalues(panels["eigenvalues"], seen)
        _draw_singular_values(panels["singular values"], seen)
        _draw_gradients(panels["gradients"], seen)
        _draw_states(panels["states"], seen)
        save(figure, output, dpi=85)


def _styled(named: Dict[str, Any]) -> Iterator[Tuple[str, Any, str, str]]:
    """Names and values, each with a colour and a line style."""
    for (name, value), colour, style in zip(named.items(), cycle(COLOURS), cycle(STYLES)):
        yield name, value, colour, style


def _draw_eigenvalues(axes: Axes, seen: Inspection) -> None:
    circle = np.exp(1j * np.linspace(0, 2 * np.pi, 400))
    axes.plot(circle.real, circle.imag, color="grey", linewidth=1)
    for name, of, colour, _ in _styled(seen.spectra):
        values = of.eigenvalues.numpy()
        points: Dict[str, Any] = {"s": 20, "alpha": 0.5, "linewidths": 0}
        axes.scatter(values.real, values.imag, color=colour, label=f"${name}$", **points)
    axes.set(xlabel="real part", ylabel="imaginary part")
    axes.set_aspect("equal", adjustable="datalim")
    _finish(axes, "Eigenvalues of W, and the unit circle", len(seen.spectra) > 1)


def _draw_singular_values(axes: Axes, seen: Inspection) -> None:
    spectra = {f"${name}$": of.singular_values.numpy() for name, of in seen.spectra.items()}
    low, high = (f(np.concatenate(list(spectra.values()))) for f in (np.min, np.max))
    if high > WIDE * low:
        bins: Any = np.geomspace(max(low, 1e-6 * high), high, 41)
        axes.set_xscale("log")
    else:  # not narrower than 1 %, which would magnify roundings
        middle, half = (low + high) / 2, (high - low) / 2
        bins = middle + max(half, 0.005 * middle) * np.linspace(-1, 1, 41)
    for name, values, colour, style in _styled(spectra):
        values = values.clip(bins[0], bins[-1])
        axes.hist(values, bins, color=colour, alpha=0.2)
        line: Dict[str, Any] = {"histtype": "step", "linestyle": style, "linewidth": 2}
        axes.hist(values, bins, color=colour, label=name, **line)
    axes.axvline(1, color="grey", linewidth=1)
    axes.set(xlabel="singular value", ylabel="count")
    _finish(axes, f"Singular values of W, {low:.4g} to {high:.4g}", len(seen.spectra) > 1)


def _draw_gradients(axes: Axes, seen: Inspection) -> None:
    low, high = 0.1, 10.0  # at least, so that what is level looks so
    steps = len(next(iter(seen.gradients.values())).last) - 1
    for name, of, colour, style in _styled(seen.gradients):
        label = f"{name}: {of.last[-1]:.2g} at {steps} steps"
        axes.plot(of.last, style, color=colour, linewidth=3, label=label)
        if seen.per_step:
            axes.plot(of.whole, color=colour, linewidth=1, alpha=0.6)
        low, high = min(low, of.last.min()), max(high, of.last.max(), of.whole.max())
    axes.axhline(1, color="grey", linewidth=1)
    axes.set(xlim=(steps, 0), yscale="log", ylim=(max(low, LEAST) / 2, 2 * high))
    axes.set(xlabel="steps before the end", ylabel="gradient at $h_t$ / at the end")
    what = "last prediction (thin: of all)" if seen.per_step else "answer"
    _finish(axes, f"Gradient of the loss of the {what}, at earlier states; validation", True)


def _draw_states(axes: Axes, seen: Inspection) -> None:
    name = "$|h_t|$" if seen.is_complex else "$h_t$"
    limit = np.quantile(np.abs(seen.states), 0.99)
    least, colours = (0, "viridis") if seen.is_complex else (-limit, "PuOr")
    extent = (0, *seen.states.shape, 0)
    options: Dict[str, Any] = {"aspect": "auto", "interpolation": "nearest", "extent": extent}
    image = axes.imshow(seen.states.T, cmap=colours, vmin=least, vmax=limit, **options)
    axes.figure.colorbar(image, ax=axes, pad=0.01)
    axes.set(xlabel="step", ylabel="unit", title=f"States {name} of one example of validation")


def _finish(axes: Axes, title: str, has_legend: bool) -> None:
    axes.set_title(title)
    axes.grid(alpha=0.3)
    if has_legend:
        handles: Any = axes.legend().legend_handles
        for handle in handles:
            handle.set_alpha(1)
