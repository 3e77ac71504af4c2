"""Our layers, steps and products beside their peers, in one process, on the CPU.

    python benchmarks/recurrence.py [--rows NAME …] [--rounds N] [--json FILE]

gpu.py times the GPU. Each row is timed forward alone, without gradients, and forward with backward,
in float32. Backwards, every candidate receives a random gradient at every output and computes those
of its parameters, and none of the input; a product computes those of its vectors and factors. A
gradient from the last state alone shrinks on its way, and some processors compute a hundred times
slower with numbers that are almost 0.

Beside our times stand two floors (floors.py), and the share of the larger one: floor / time. The
memory of a candidate is measured in a process of its own: the most that it takes while it runs
forward, and then backward, beyond parameters, inputs and the gradient of the output.
linear_operator and pyfastkron are timed where they are installed (`pip install -e .[bench]`).
"""

import argparse
import json
import platform
import subprocess
import sys
from datetime import date
from importlib import metadata
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import torch
from floors import floors
from peers import PRODUCTS, Candidate, Case, Row, make_case, tiny
from tabulate import tabulate
from timing import LARGE, bandwidth, interleave, machine, memory, peak_memory, peak_multiply_adds

OURS = ("KRU", "KRU-LSTM", "KRU.stream", "KRU.step", "kron_matmul")
DIRECTIONS = {"forward": "forward", "both": "forward and backward"}
TEXT = (128, 100, 50)  # sequences, steps, symbols


def torchs_layers(size: int) -> List[Candidate]:
    return [Candidate(kind, size) for kind in ("LSTM", "GRU", "RNN", "orthogonal RNN")]


def beside_lstms(name: str, form: str, sizes: Tuple[int, int, int], *goals: float) -> Row:
    """A KRU of 512 units, an LSTM of as many, and one of 128; `goals` over the two."""
    candidates = [Candidate(*of) for of in (("KRU", 512), ("LSTM", 512), ("LSTM", 128))]
    return Row(name, form, *sizes, candidates, {"KRU(512)": lstms(*goals)})


def lstms(*goals: float) -> Dict[str, float]:
    return dict(zip(("LSTM(512)", "LSTM(128)"), goals, strict=True))


def one_step(size: int, goal: float) -> Row:
    candidates = [Candidate(kind, size) for kind in ("KRU.stream", "KRU.step", "LSTMCell")]
    goals = {f"KRU.stream({size})": {f"LSTMCell({size})": goal}}
    return Row(f"step-{size}", "step", 1, 500, 1, candidates, goals)


def product(name: str, dtype: torch.dtype) -> Row:
    candidates = [Candidate(kind, 512) for kind in PRODUCTS]
    goals = {f"{kind}(512)": 1.0 for kind in ("linear_operator", "pyfastkron")}
    return Row(name, "product", 4096, 1, 0, candidates, {"kron_matmul(512)": goals}, dtype)


ROWS = [
    Row(
        *("pixels", "features", 128, 784, 1),
        [
            Candidate("KRU", 512),
            Candidate("KRU", 512, {"checkpoint_every": 28}),
            Candidate("KRU-LSTM", 512),
            *torchs_layers(512),
            Candidate("LSTM", 128),
        ],
        {"KRU(512)": lstms(40, 6), "KRU-LSTM(512)": lstms(15, 2.5)},
    ),
    Row(
        *("copy", "one-hot", 20, 1000, 10),
        [Candidate("KRU", 128), Candidate("KRU-LSTM", 128), *torchs_layers(128)],
        {"KRU(128)": {"LSTM(128)": 6}},
    ),
    beside_lstms("text", "tokens", TEXT, 20, 2.5),
    beside_lstms("text-features", "features", TEXT, 10, 1.2),
    Row(
        *("text-lstm", "tokens", *TEXT),
        [Candidate("KRU-LSTM", 1216, {"factors": "4,16,19"}), Candidate("LSTM", 256)],
        {"KRU-LSTM(1216, factors=4,16,19)": {"LSTM(256)": 1.2}},
    ),
    beside_lstms("one-sequence", "features", (1, 1000, 1), 20, 2),
    beside_lstms("eight-sequences", "features", (8, 1000, 1), 20, 2),
    Row(
        *("one-sequence-128", "features", 1, 1000, 1),
        [Candidate("KRU", 128), Candidate("LSTM", 128)],
        {"KRU(128)": {"LSTM(128)": 8}},
    ),
    one_step(128, 3),
    one_step(512, 5),
    product("product", torch.float32),
    product("product-complex", torch.complex64),
    Row("million-units", "features", 1, 10, 1, [Candidate("KRU", 2**20)]),
]


def measure(row: Row, rounds: int) -> List[Dict[str, Any]]:
    """A record of each candidate in each direction, the same fields in all of them."""
    cases = {candidate.name: make_case(row, candidate) for candidate in row.candidates}
    records = []
    for direction in DIRECTIONS:
        runs = {
            name: getattr(case, direction)
            for name, case in cases.items()
            if direction == "forward" or case.gradient is not None
        }
        seconds = interleave(right(runs) if row.form == "product" else runs, rounds)
        calls = row.steps if row.form == "step" else 1
        ms = {name: 1000 * time / calls for name, time in seconds.items()}
        for candidate in row.candidates:
            if candidate.name in ms:
                case = cases[candidate.name]
                records.append(record(row, candidate, case, direction, ms))
    return records


def right(runs: Dict[str, Callable[[], Any]]) -> Dict[str, Callable[[], Any]]:
    """Those that compute what the first does; the others are named, with the difference."""
    wanted = next(iter(runs.values()))()
    found = {}
    for name, run in runs.items():
        try:
            torch.testing.assert_close(run(), wanted, rtol=1e-3, atol=1e-2)
            found[name] = run
        except (AssertionError, RuntimeError) as error:
            print(f"{name} is left out: {str(error).splitlines()[0]}")
    return found


def record(
    row: Row, candidate: Candidate, case: Case, direction: str, ms: Dict[str, float]
) -> Dict[str, Any]:
    """Of ours: `times` says how many times as fast as each peer, `share` how near to the floor."""
    is_ours = candidate.kind in OURS
    mine, kinds = ms[candidate.name], {peer.name: peer.kind for peer in row.candidates}
    peers = {name: other / mine for name, other in ms.items() if kinds[name] not in OURS}
    least = floors(row, candidate, case, direction == "both") if is_ours else None
    return {
        "row": row.name,
        "setting": describe(row),
        "what": candidate.name,
        "direction": direction,
        "ms": mine,
        "times": peers if is_ours else None,
        "goal": row.goals.get(candidate.name),
        "floors": least,
        "share": max(least["arithmetic_ms"], least["memory_ms"]) / mine if least else None,
    }


def describe(row: Row) -> str:
    if row.form == "product":
        return f"W x, {row.batch} vectors, {row.dtype}"
    per = ", each step" if row.form == "step" else ""
    return f"B={row.batch} T={row.steps} I={row.inputs}, {row.form}{per}"


def memory_of(row: Row, candidate: Candidate, directions: Sequence[str]) -> Dict[str, float]:
    """MiB that a candidate takes at most, by direction, in a process that has timed nothing."""
    found = {}
    for row_ in (tiny(row), row):  # torch and the kernels load what they need in a first run
        case = make_case(row_, candidate)
        before = memory()
        for direction in directions:
            getattr(case, direction)()
            found[direction] = peak_memory() - before
    return found


def add_memory(row: Row, records: List[Dict[str, Any]], options: Sequence[str]) -> None:
    """To the records of a row, each candidate in a process of its own."""
    for candidate in row.candidates:
        its = [each for each in records if each["what"] == candidate.name]
        directions = [each["direction"] for each in its]
        what = ["--memory-of", row.name, candidate.name, *directions]
        command = [sys.executable, __file__, *options, *what]
        printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        for each in its:
            each["MiB"] = json.loads(printed)[each["direction"]]


def show(records: List[Dict[str, Any]]) -> None:
    """Print one direction of a row."""
    first = records[0]
    scale, unit = (1000, "µs") if max(each["ms"] for each in records) < 1 else (1, "ms")
    ours = [each for each in records if each["goal"]]
    lines = []
    for each in records:
        line = {"what": each["what"], unit: scale * each["ms"], "MiB": each["MiB"]}
        for name, least in (each["floors"] or {}).items():
            if name.endswith("_ms"):
                line[name.replace("_ms", f", {unit}")] = scale * least
        line["share"] = f"{100 * each['share']:.0f} %" if each["share"] else ""
        for mine in ours:
            ratio, goal = mine["times"].get(each["what"]), mine["goal"].get(each["what"])
            wanted = f" (goal {goal:g})" if goal else ""
            line[f"to {mine['what']}"] = f"{ratio:.2f}{wanted}" if ratio else ""
        lines.append(line)
    print(f"\n{first['row']}: {first['setting']}; {DIRECTIONS[first['direction']]}")
    print(tabulate(lines, headers="keys", floatfmt=".4g"), flush=True)


def versions() -> Dict[str, Optional[str]]:
    found = {"python": platform.python_version()}
    for name in ("torch", "numpy", "linear_operator", "pyfastkron"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def limits(threads: int) -> Dict[str, Any]:
    """Of the machine, with one thread and with all."""
    return {
        str(n): dict(
            zip(
                ("multiply_adds_per_s", "bytes_read_per_s", "bytes_written_per_s"),
                (peak_multiply_adds(n), *bandwidth(LARGE, n)),
                strict=True,
            )
        )
        for n in sorted({1, threads})
    }


def arguments(given: Optional[Sequence[str]]) -> argparse.Namespace:
    names = [row.name for row in ROWS]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", nargs="+", choices=names, default=names, metavar="NAME")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", help="write the numbers to this file too")
    parser.add_argument("--tiny", action="store_true", help="next to no work, to see that it runs")
    parser.add_argument(
        "--memory-of",
        nargs="+",
        metavar="WORD",
        help="a row, a candidate and directions: print its memory in them, and no more",
    )
    return parser.parse_args(given)


def main(given: Optional[Sequence[str]] = None) -> None:
    args = arguments(given)
    torch.set_num_threads(args.threads)
    rows = {row.name: tiny(row) if args.tiny else row for row in ROWS}
    if args.memory_of:
        name, of, *directions = args.memory_of
        (candidate,) = (each for each in rows[name].candidates if each.name == of)
        print(json.dumps(memory_of(rows[name], candidate, directions)))
        return
    result = {
        "machine": machine(),
        "versions": versions(),
        "date": date.today().isoformat(),
        "limits": limits(args.threads),
        "rows": [],
    }
    print({key: value for key, value in result.items() if key != "rows"})
    for name in args.rows:
        records = measure(rows[name], args.rounds)
        add_memory(rows[name], records, ["--threads", str(args.threads), *["--tiny"] * args.tiny])
        for direction in DIRECTIONS:
            found = [each for each in records if each["direction"] == direction]
            if found:
                show(found)
        result["rows"] += records
        if args.json:
            with open(args.json, "w", encoding="utf-8") as file:
                json.dump(result, file, indent=1)


if __name__ == "__main__":
    main()
