"""How the time of a training step grows with the size of the state, N = 2^7 to 2^17.

    python benchmarks/scaling.py [--plot FILE.png] [--json FILE]

Every size has the same B T N, so that N log N growth is a straight line in log N. The last number
is one training step at N = 2^20, with the memory that it takes.
"""

import argparse
import json
import math
from typing import Dict, List

import torch
from recurrence import Setting, kru_step
from tabulate import tabulate
from timing import interleave, machine, peak_memory

EXPONENTS = range(7, 18)
BATCH = 16
ELEMENTS = 2**26  # B T N
LARGE = Setting(batch=1, steps=10, size=2**20)


def measure(rounds: int) -> Dict[int, float]:
    """Seconds per step and sequence, forward and backward, by N."""
    settings = [Setting(BATCH, ELEMENTS // BATCH >> e, 1 << e) for e in EXPONENTS]
    runs = {str(s.size): kru_step(s, "cpu", "cpu") for s in settings}
    seconds = interleave(runs, rounds)
    return {s.size: seconds[str(s.size)] / (s.batch * s.steps) for s in settings}


def rows_of(seconds: Dict[int, float]) -> List[dict]:
    """Each size with its time per N log2 N, and the fit: its ratio to the geometric mean of all."""
    unit = {n: time / (n * math.log2(n)) for n, time in seconds.items()}
    mean = math.exp(sum(map(math.log, unit.values())) / len(unit))
    return [
        {"N": n, "us": 1e6 * time, "ns per N log N": 1e9 * unit[n], "to the fit": unit[n] / mean}
        for n, time in seconds.items()
    ]


def plot(rows: List[dict], path: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    sizes = [row["N"] for row in rows]
    figure, axes = pyplot.subplots(figsize=(5, 3.5), layout="constrained")
    axes.loglog(sizes, [row["us"] for row in rows], "o", label="measured")
    fit = [row["us"] / row["to the fit"] for row in rows]
    axes.loglog(sizes, fit, "-", label="fit of N log N")
    axes.set_xscale("log", base=2)
    axes.set_xlabel("N")
    axes.set_ylabel("µs a step and sequence")
    axes.legend()
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--plot", help="write a PNG")
    parser.add_argument("--json", help="write the numbers to this file too")
    args = parser.parse_args()
    torch.manual_seed(0)
    print(machine())
    large = interleave({"large": kru_step(LARGE, "cpu", "cpu")}, 1)["large"]
    memory = peak_memory()
    rows = rows_of(measure(args.rounds))
    print(tabulate(rows, headers="keys", floatfmt=("", ".2f", ".3f", ".2f")))
    print(f"N = 2^20, T = {LARGE.steps}, B = 1: {large:.2f} s a training step, {memory:.0f} MiB")
    if args.plot:
        plot(rows, args.plot)
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump({"machine": machine(), "rows": rows, "large_s": large, "MiB": memory}, file)


if __name__ == "__main__":
    main()
