"""The CUDA kernels on a real GPU.

    python benchmarks/gpu.py test       the backend's tests, trainings in half precision and in
                                        several processes, compute-sanitizer where it is
    python benchmarks/gpu.py bench      KRU beside cuDNN and others: benchmarks/results/NAME.json,
                                        rewritten after each table, and NAME_scaling.png

`make gpu-test` and `make gpu-bench` set up what these need and call them. Without a GPU both say
what is missing and end with status 2.
"""

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, List

import torch
from recurrence import (
    PRODUCT,
    SETTINGS,
    Setting,
    kru_step,
    layer_step,
    products,
    recurrences,
    table,
    unitary_factors,
)
from timing import by_events, interleave
from torch import nn

from kron_plugin.files import finished
from kron_plugin.ops.cuda_kernels import FUNCTIONS, missing

HERE = Path(__file__).parent
TESTS = HERE.parent / "tests"
SANITIZERS = {"memcheck": ["--padding", "32"], "racecheck": []}
# Ours alone: torch's kernels are not what is checked, and what it asks the driver for as it starts
# would count as errors.
OURS = [word for kind in FUNCTIONS for word in ("--kernel-name", f"kns={kind}_")]
OF_EVERY_SANITIZER = [*OURS, "--report-api-errors", "no", "--error-exitcode", "1"]
IN_A_GRAPH = "KRU, graph"
SIZES = [Setting(128, 64, 2**n) for n in range(4, 17, 2)]
BATCHES = [Setting(4**n, 256, 512) for n in range(7)]
SCALES = {"N": "size", "B": "batch"}  # a picture's letters, and the fields of a setting
OTHERS = {"N": "B={batch}", "B": "N={size}"}


def obstacle() -> str:
    """What keeps this from running here; empty if nothing does."""
    if not torch.cuda.is_available():
        build = torch.version.cuda or "none: a CPU build"
        return (
            f"torch {torch.__version__} finds no NVIDIA GPU (its CUDA: {build}). The kernels are"
            " tested without one by `make test`"
        )
    return missing() or ""


def test_commands() -> List[List[Any]]:
    """What `run_tests` runs; for what is missing here it prints that it is left out."""
    pytest = [sys.executable, "-m", "pytest", "-v", "-k"]
    kernels = ["test_cuda.py", "test_cuda_gpu.py", "test_kron_rnn.py", "test_kron_lstm.py"]
    commands = [[*pytest, "cuda", *(TESTS / "ops" / name for name in kernels)]]
    if shutil.which("compute-sanitizer"):
        for tool, options in SANITIZERS.items():
            check = ["compute-sanitizer", "--tool", tool, *options, *OF_EVERY_SANITIZER]
            commands.append([*check, sys.executable, HERE / "gpu_cases.py"])
    else:
        print("compute-sanitizer is not on the path: left out")
    if importlib.util.find_spec("fairseq"):
        training = ("test_half_precision.py", "test_recipes.py")
        commands.append([*pytest, "gpu", *(TESTS / name for name in training)])
    else:
        print("fairseq is not installed: trainings are left out")
    return commands


def run_tests() -> int:
    """All tests, though some fail; 0 if none does, else 1."""
    failures = []
    for command in test_commands():
        words = list(map(str, command))
        print("+", *words, flush=True)
        # Out of a larger block of torch's an overrun would stay unseen.
        alone = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"} if "compute-sanitizer" in command else {}
        run = subprocess.run(words, cwd=HERE.parent, env={**os.environ, **alone})
        if run.returncode != 0:
            failures.append(run)
    for run in failures:
        print(f"failed with status {run.returncode}:", *run.args)
    return 1 if failures else 0


def attempt(name: str, make: Callable[[], Any]) -> Any:
    """What `make` returns, or None, and why it is printed, where it fails, as a peer may."""
    try:
        return make()
    except Exception as error:
        print(f"{name} is left out: {type(error).__name__}: {error}", flush=True)
        return None


def per_factor(setting: Setting) -> Callable[[], None]:
    """One launch for each factor of each step; that it computes the same is made sure first."""
    from per_factor import PerFactor

    from kron_plugin.ops import kron_rnn

    factors = torch.stack(unitary_factors(setting.size, "cuda")).detach()
    bias = torch.full((setting.size,), -0.01, device="cuda", requires_grad=True)
    h0 = torch.rand(setting.batch, 2 * setting.size, device="cuda")
    x = torch.rand(setting.steps, setting.batch, 2 * setting.size, device="cuda")
    trained = torch.view_as_real(factors).requires_grad_()

    def call(steps: int) -> torch.Tensor:
        return PerFactor.apply(x[:steps], trained, bias, h0)

    def ours(steps: int) -> torch.Tensor:
        matrices = list(torch.view_as_complex(trained).unbind())
        return kron_rnn(x[:steps], matrices, bias, h0, backend="cuda")[1]

    for a, b in zip(
        *(torch.autograd.grad(f(5).square().sum(), (trained, bias)) for f in (call, ours)),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * float(b.abs().max()))
    return graphed(lambda: call(setting.steps).square().sum().backward())


def graphed(run: Callable[[], None]) -> Callable[[], None]:
    """The launches of a call as a CUDA graph, so that Python's time for each does not count."""
    before = torch.cuda.current_stream()
    side = torch.cuda.Stream()
    side.wait_stream(before)
    with torch.cuda.stream(side):
        run()
    before.wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            run()
    finally:  # where capturing fails, torch may stay on the stream of it
        torch.cuda.set_stream(before)

    def replay(reads_from: Callable[[], None] = run) -> None:
        graph.replay()

    return replay


def peers(setting: Setting) -> Dict[str, Callable[[], None]]:
    """What `recurrences` times, and cuDNN's layers with TF32 and in bf16; those that run here."""
    candidates = recurrences(setting, "cuda")
    candidates["KRU"]()  # which has to
    graph = attempt(IN_A_GRAPH, lambda: graphed(candidates["KRU"]))
    if graph is not None:
        candidates[IN_A_GRAPH] = graph
    name = "one launch a factor and step"
    launches = attempt(name, lambda: per_factor(setting))
    if launches is not None:
        candidates[name] = launches

    def with_tf32(run: Callable[[], None]) -> Callable[[], None]:
        def call() -> None:
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
            try:
                run()
            finally:
                torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False

        return call

    for size in sorted({setting.size, 128}, reverse=True):
        plain = layer_step(nn.LSTM(1, size), setting, "cuda")
        candidates[f"LSTM({size}) TF32"] = with_tf32(plain)
        half = layer_step(nn.LSTM(1, size), setting, "cuda", torch.bfloat16)
        candidates[f"LSTM({size}) bf16"] = half

    return those_that_run(candidates)


def those_that_run(candidates: Dict[str, Callable[[], None]]) -> Dict[str, Callable[[], None]]:
    def works(run: Callable[[], None]) -> bool:
        run()
        torch.cuda.synchronize()
        return True

    return {n: run for n, run in candidates.items() if attempt(n, partial(works, run))}


def bandwidth() -> float:
    """Bytes a second, read and written, of a large copy."""
    source = torch.empty(1 << 28, device="cuda")
    target = torch.empty_like(source)
    seconds = interleave({"copy": lambda: target.copy_(source)}, 10, seconds=by_events)["copy"]
    return 2 * source.numel() * source.element_size() / seconds


def scaling(title: str, setting: Setting) -> dict:
    """KRU alone, with the memory it takes."""
    run = kru_step(setting, "cuda", "cuda")
    seconds = interleave({"KRU": run}, 5, budget=10, seconds=by_events)["KRU"]
    torch.cuda.reset_peak_memory_stats()
    run()
    memory = torch.cuda.max_memory_allocated() / 2**20
    row = {"setting": title, **setting._asdict(), "ms": 1000 * seconds, "MiB": memory}
    print(f"{title}: {row}", flush=True)
    return row


def plot_scaling(rows: List[dict], path: Path) -> None:
    """Time and memory over N and over B."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    for axes, (title, size) in zip(figure.subplots(1, 2), SCALES.items(), strict=True):
        found = [row for row in rows if row["setting"] == title]
        at = [row[size] for row in found]
        axes.loglog(at, [row["ms"] for row in found], "o-", label="ms, forward and backward")
        axes.loglog(at, [row["MiB"] for row in found], "s--", label="MiB at most")
        axes.set_xscale("log", base=2)
        axes.set(xlabel=title, title=f"T={found[0]['steps']}, " + OTHERS[title].format(**found[0]))
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=100)


def floors(setting: Setting, rate: float) -> Dict[str, float]:
    """Milliseconds below which the kernels cannot be, as GPU.md counts them: six passes over the
    states at the measured bandwidth, and the steps one sequence takes, alone on the GPU."""
    passes = 6 * 8 * setting.batch * setting.steps * setting.size
    alone = {"step": graphed(kru_step(setting._replace(batch=1), "cuda", "cuda"))}
    latency = interleave(alone, 5, seconds=by_events)["step"]
    return {"bandwidth_floor_ms": 1000 * passes / rate, "latency_floor_ms": 1000 * latency}


def machine() -> Dict[str, Any]:
    import cupy

    return {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "driver": cupy.cuda.runtime.driverGetVersion(),
        "cupy": cupy.__version__,
    }


def run_benchmark(folder: Path) -> None:
    """Times everything; what is known is written after each table, and each size."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    rate, rows = bandwidth(), []
    facts = {**machine(), "bytes_per_second": rate, "rows": rows}
    print(f"{rate / 1e12:.2f} TB/s")
    path = folder / f"{facts['gpu'].lower().replace(' ', '-')}.json"

    def keep(more: List[dict]) -> None:
        rows.extend(more)
        with finished(path) as unfinished:
            unfinished.write_text(json.dumps(facts), encoding="utf-8")

    for setting in SETTINGS:
        seconds = interleave(peers(setting), 5, seconds=by_events)
        title = f"B={setting.batch} T={setting.steps} N={setting.size}, forward and backward"
        found = table(title, seconds)
        least = floors(setting, rate)
        found[0].update(least)
        best = seconds.get(IN_A_GRAPH, seconds["KRU"])
        shares = {name: f"{ms / 10 / best:.0f}%" for name, ms in least.items()}
        print(f"KRU: floors {least}, share reached {shares}")
        keep(found)
    vectors, size = PRODUCT
    candidates = those_that_run(products("cuda"))
    for name, run in list(candidates.items()):
        graph = attempt(f"{name}, graph", partial(graphed, run))
        if graph is not None:
            candidates[f"{name}, graph"] = graph
    seconds = interleave(candidates, 20, seconds=by_events)
    keep(table(f"real W x, {vectors} vectors, N={size}", seconds))
    for title, settings in (("N", SIZES), ("B", BATCHES)):
        for setting in settings:
            keep([scaling(title, setting)])
    plot_scaling(rows, path.with_name(f"{path.stem}_scaling.png"))
    print(f"written: {path}")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["test", "bench"])
    parser.add_argument(
        "--results", type=Path, default=HERE / "results", help="folder for what bench finds"
    )
    args = parser.parse_args()
    reason = obstacle()
    if reason:
        print(f"gpu-{args.what} needs an NVIDIA GPU and CuPy: {reason}.", file=sys.stderr)
        return 2
    if args.what == "test":
        return run_tests()
    args.results.mkdir(parents=True, exist_ok=True)
    run_benchmark(args.results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
