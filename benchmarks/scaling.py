"""How the time of a KRU grows with the state, the batch and the steps, and falls with threads.

    python benchmarks/scaling.py [--plot FILE.png] [--json FILE] [--rounds N]

Forward and backward, float32, one feature a step. A model on paper tells what more threads would
give than are measured: a serial part, and the sequences of the busiest thread, which take equal
times (native/layout.h). Its two numbers follow from the times on one and two threads. It takes for
granted that the memory keeps up with all threads.
"""

import argparse
import json
import math
from functools import partial
from typing import Any, Callable, Dict, List, Tuple

import torch
from peers import Candidate, Row, make_case
from tabulate import tabulate
from timing import interleave, machine

ELEMENTS = 2**24  # B T N, for all sizes
KRUS = {  # by panel: B, T and N of each point
    "N": [(16, ELEMENTS // 16 >> e, 1 << e) for e in range(7, 15)],
    "B": [(1 << e, 100, 512) for e in range(9)],
    "T": [(20, steps, 128) for steps in (10, 20, 50, 100, 200, 500, 1000)],
}
ON_THREADS = [(20, 1000, 128), (128, 100, 512)]
THREADS = (1, 2, 4, 8, 16, 32)


def kru(batch: int, steps: int, size: int, threads: int) -> Callable[[], None]:
    """One forward and backward pass on so many threads."""
    case = make_case(Row("", "features", batch, steps, 1, []), Candidate("KRU", size))

    def run() -> None:
        torch.set_num_threads(threads)
        case.both()

    return run


def points(panel: str, threads: int, rounds: int) -> List[Dict[str, Any]]:
    """The times of a panel, for each step and sequence."""
    found = KRUS[panel]
    seconds = interleave({str(of): kru(*of, threads) for of in found}, rounds)
    rows = []
    for of in found:
        batch, steps, size = of
        us = 1e6 * seconds[str(of)] / (batch * steps)
        rows.append({"panel": panel, "B": batch, "T": steps, "N": size, "us": us})
    return rows


def on_threads(of: Tuple[int, int, int], rounds: int) -> List[Dict[str, Any]]:
    """Milliseconds on each number of threads, by the model, and measured on one and two."""
    batch, steps, size = of
    seconds = interleave({str(n): kru(*of, n) for n in (1, 2)}, rounds)
    measured = {int(n): time for n, time in seconds.items()}
    one, two = batch, math.ceil(batch / 2)
    sequence = min(max(0, (measured[1] - measured[2]) / (one - two)), measured[1] / one)
    serial = measured[1] - sequence * one
    rows = []
    for n in THREADS:
        row = {"panel": "threads", "B": batch, "T": steps, "N": size, "threads": n}
        seconds_by_model = serial + sequence * math.ceil(batch / n)
        model = {"serial_ms": 1000 * serial, "ms": 1000 * seconds_by_model}
        rows.append({**row, **model, "measured_ms": 1000 * measured[n] if n in measured else None})
    return rows


def plot(rows: List[Dict[str, Any]], path: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6.5), layout="constrained")
    *panels, last = figure.subplots(2, 2).flat
    for axes, panel in zip(panels, KRUS, strict=True):
        found = [row for row in rows if row["panel"] == panel]
        at, us = [row[panel] for row in found], [row["us"] for row in found]
        axes.plot(at, us, "o-", label="measured")
        if panel == "N":
            ideal = [n * math.log2(n) for n in at]
            mean = math.prod(a / b for a, b in zip(us, ideal, strict=True)) ** (1 / len(at))
            axes.plot(at, [mean * n for n in ideal], "--", label="N log N")
            axes.legend()
        same = [f"{key}={found[0][key]}" for key in "BTN" if len({row[key] for row in found}) == 1]
        axes.set_yscale("log")
        axes.set(xlabel=panel, ylabel="µs a step and sequence", title=", ".join(same))
    for batch, steps, size in ON_THREADS:
        found = [row for row in rows if row["panel"] == "threads" and row["B"] == batch]
        one, name = found[0]["measured_ms"], f"model, B={batch} T={steps} N={size}"
        (line,) = last.plot(THREADS, [one / row["ms"] for row in found], "--", label=name)
        ratios = {row["threads"]: one / row["measured_ms"] for row in found if row["measured_ms"]}
        last.plot(*zip(*ratios.items(), strict=True), "o", color=line.get_color(), label="measured")
    last.set(xlabel="threads", ylabel="times as fast as on one")
    last.legend()
    for axes in figure.axes:
        axes.set_xscale("log", base=10 if axes.get_xlabel() == "T" else 2)
        axes.grid(alpha=0.3)
    last.set_xticks(THREADS, THREADS)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2, help="of the first three panels")
    parser.add_argument("--plot", help="write a PNG")
    parser.add_argument("--json", help="write the numbers to this file too")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    name, rows = machine(), []
    print(name)
    runs = [partial(points, panel, args.threads) for panel in KRUS]
    for run in [*runs, *(partial(on_threads, of) for of in ON_THREADS)]:
        found = run(args.rounds)
        print(tabulate(found, headers="keys", floatfmt=".4g"), flush=True)
        rows += found
    if args.plot:
        plot(rows, args.plot)
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump({"machine": name, "rows": rows}, file, indent=1)


if __name__ == "__main__":
    main()
