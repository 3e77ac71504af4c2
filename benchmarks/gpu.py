"""The CUDA kernels on a real GPU.

    python benchmarks/gpu.py test       the backend's tests, trainings in half precision and in
                                        several processes, compute-sanitizer where it is
    python benchmarks/gpu.py bench      KRU beside cuDNN and others: benchmarks/results/NAME.json

`make gpu-test` and `make gpu-bench` set up what these need and call them. Without a GPU both say
what is missing and end with status 2.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Callable, Dict, List

import torch
from recurrence import (
    PRODUCT,
    SETTINGS,
    Setting,
    kru_cost,
    kru_step,
    layer_step,
    products,
    recurrences,
    table,
    unitary_factors,
)
from timing import by_events, interleave
from torch import nn

from kron_plugin.ops.cuda_kernels import missing

HERE = Path(__file__).parent
LATENCY = Setting(1, 20_000, 4)  # a thread's work: what is left is the way between steps
SIZES = [Setting(128, 256, 2**n) for n in range(4, 17, 2)]
BATCHES = [Setting(4**n, 256, 512) for n in range(7)]


def obstacle() -> str:
    """What keeps this from running here; empty if nothing does."""
    if not torch.cuda.is_available():
        build = torch.version.cuda or "none: a CPU build"
        return (
            f"torch {torch.__version__} finds no NVIDIA GPU (its CUDA: {build}). The kernels are"
            " tested without one by `make test`"
        )
    return missing() or ""


def run_tests() -> int:
    """The status of the first of the tests that fails, or 0."""
    tests = HERE.parent / "tests"
    pytest = [sys.executable, "-m", "pytest", "-v", "-k"]
    commands = [[*pytest, "cuda", tests / "ops"]]
    training = [tests / "test_half_precision.py", tests / "test_recipes.py"]
    commands.append([*pytest, "gpu", *training])
    if shutil.which("compute-sanitizer"):
        for tool in ("memcheck", "racecheck"):
            check = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "1"]
            commands.append([*check, sys.executable, HERE / "gpu_cases.py"])
    else:
        print("compute-sanitizer is not on the path: left out")
    for command in commands:
        print("+", *command, flush=True)
        status = subprocess.run([str(part) for part in command], cwd=HERE.parent).returncode
        if status != 0:
            return status
    return 0


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
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def peers(setting: Setting) -> Dict[str, Callable[[], None]]:
    """What `recurrences` times, and cuDNN's layers with TF32 and in bf16."""
    candidates = recurrences(setting, "cuda")
    candidates["one launch a factor and step"] = per_factor(setting)

    def with_tf32(run: Callable[[], None]) -> Callable[[], None]:
        def call() -> None:
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
            run()
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False

        return call

    for size in sorted({setting.size, 128}, reverse=True):
        plain = layer_step(nn.LSTM(1, size), setting, "cuda")
        candidates[f"LSTM({size}) TF32"] = with_tf32(plain)
        half = layer_step(nn.LSTM(1, size), setting, "cuda", torch.bfloat16)
        candidates[f"LSTM({size}) bf16"] = half
    return candidates


def bandwidth() -> float:
    """Bytes a second, read and written, of a large copy."""
    source = torch.empty(1 << 28, device="cuda")
    target = torch.empty_like(source)
    seconds = interleave({"copy": lambda: target.copy_(source)}, 10, seconds=by_events)["copy"]
    return 2 * source.numel() * source.element_size() / seconds


def scaling(title: str, settings: List[Setting]) -> List[dict]:
    """KRU alone, with the memory it takes."""
    rows = []
    for setting in settings:
        run = kru_step(setting, "cuda", "cuda")
        seconds = interleave({"KRU": run}, 5, seconds=by_events)["KRU"]
        torch.cuda.reset_peak_memory_stats()
        run()
        memory = torch.cuda.max_memory_allocated() / 2**20
        rows.append({"setting": title, **setting._asdict(), "ms": 1000 * seconds, "MiB": memory})
        print(f"{title}: {rows[-1]}", flush=True)
    return rows


def run_benchmark() -> None:
    """Times everything and writes the numbers."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    rate = bandwidth()
    latency_run = {"step": kru_step(LATENCY, "cuda", "cuda")}
    step = interleave(latency_run, 5, seconds=by_events)["step"] / LATENCY.steps
    print(f"{rate / 1e12:.2f} TB/s; {1e6 * step:.2f} us a dependent step there and back")
    rows: List[dict] = []
    for setting in SETTINGS:
        seconds = interleave(peers(setting), 5, seconds=by_events)
        title = f"B={setting.batch} T={setting.steps} N={setting.size}, forward and backward"
        rows += table(title, seconds)
        floors = {
            "bandwidth_floor_ms": 1000 * kru_cost(setting)["bytes"] / rate,
            "latency_floor_ms": 1000 * step * setting.steps,
        }
        rows[-len(seconds)].update(floors)
        shares = {name: f"{ms / 10 / seconds['KRU']:.0f}%" for name, ms in floors.items()}
        print(f"KRU: floors {floors}, share reached {shares}")
    vectors, size = PRODUCT
    rows += table(
        f"real W x, {vectors} vectors, N={size}",
        interleave(products("cuda"), 20, seconds=by_events),
    )
    rows += scaling("N", SIZES) + scaling("B", BATCHES)
    properties = torch.cuda.get_device_properties(0)
    import cupy

    facts = {
        "gpu": properties.name,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "driver": cupy.cuda.runtime.driverGetVersion(),
        "cupy": cupy.__version__,
        "bytes_per_second": rate,
        "seconds_per_step": step,
    }
    path = HERE / "results" / f"{properties.name.lower().replace(' ', '-')}.json"
    path.write_text(json.dumps({**facts, "rows": rows}), encoding="utf-8")
    print(f"written: {path}")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["test", "bench"])
    args = parser.parse_args()
    reason = obstacle()
    if reason:
        print(f"gpu-{args.what} needs an NVIDIA GPU and CuPy: {reason}.", file=sys.stderr)
        return 2
    if args.what == "test":
        return run_tests()
    run_benchmark()
    return 0


if __name__ == "__main__":
    sys.exit(main())
