"""The CUDA kernels on a real GPU.

    python benchmarks/gpu.py test [PART …]      backend: the backend's tests; memcheck, racecheck:
                                                compute-sanitizer; training: in half precision and
                                                in several processes
    python benchmarks/gpu.py bench [PART …]     recurrence: KRU beside cuDNN and others; product:
                                                W x alone; scaling: over N and B, with a picture

All parts run unless some are named. `bench` rewrites benchmarks/results/<gpu>.json after each new
result. `make gpu-test` and `make gpu-bench` set up the environment and call these. Without a GPU
both say what is missing and end with status 2.
"""

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List, Union

import torch
from gpu_bench import PARTS
from gpu_record import Record

from kron_plugin.ops.cuda_kernels import FUNCTIONS, missing

HERE = Path(__file__).parent
TESTS = HERE.parent / "tests"
SANITIZERS = {"memcheck": ["--padding", "32"], "racecheck": []}
# Only our kernels are checked, not torch's. Some of torch's calls to the driver at its start would
# count as errors.
OURS = [word for kind in FUNCTIONS for word in ("--kernel-name", f"kns={kind}_")]
OF_EVERY_SANITIZER = [*OURS, "--report-api-errors", "no", "--error-exitcode", "1"]


def obstacle() -> str:
    """The reason why this cannot run here; empty if it can."""
    if not torch.cuda.is_available():
        build = torch.version.cuda or "none: a CPU build"
        return (
            f"torch {torch.__version__} finds no NVIDIA GPU (its CUDA: {build}). The kernels are"
            " tested without one by `make test`"
        )
    return missing() or ""


def test_commands() -> Dict[str, Union[str, List[Any]]]:
    """The command of each part, or what is missing for it here."""
    several = ["-n", "6"] if importlib.util.find_spec("xdist") else []
    pytest = [sys.executable, "-m", "pytest", "-q", *several, "-k"]
    kernels = ["test_cuda.py", "test_cuda_gpu.py"]
    commands = {"backend": [*pytest, "cuda", *(TESTS / "ops" / name for name in kernels)]}
    for tool, options in SANITIZERS.items():
        check = ["compute-sanitizer", "--tool", tool, *options, *OF_EVERY_SANITIZER]
        commands[tool] = [*check, sys.executable, HERE / "gpu_cases.py"]
        if not shutil.which("compute-sanitizer"):
            commands[tool] = "compute-sanitizer is not on the path"
    training = ("test_half_precision.py", "test_recipes.py")
    commands["training"] = [*pytest, "gpu", *(TESTS / name for name in training)]
    if not importlib.util.find_spec("fairseq"):
        commands["training"] = "fairseq is not installed"
    return commands


def run_tests(parts: List[str]) -> int:
    """Run all parts, even if some fail; 0 if none fails, else 1."""
    failures = []
    for part, command in test_commands().items():
        if part not in parts:
            continue
        if isinstance(command, str):
            print(f"{part} is left out: {command}", flush=True)
            continue
        words = list(map(str, command))
        print("+", *words, flush=True)
        # Within one of torch's larger blocks an overrun would go unseen.
        alone = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"} if part in SANITIZERS else {}
        run = subprocess.run(words, cwd=HERE.parent, env={**os.environ, **alone})
        if run.returncode != 0:
            failures.append(f"{part} failed with status {run.returncode}")
    print(*failures, sep="\n", flush=True)
    return 1 if failures else 0


def run_benchmark(parts: List[str], folder: Path) -> int:
    """Time the parts, and write the results after each table and each size."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    folder.mkdir(parents=True, exist_ok=True)
    record = Record(folder)
    for part in parts:
        PARTS[part](record)
    print(f"written: {record.path}")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="what", required=True)
    test = commands.add_parser("test", help="the tests that need a GPU")
    test.add_argument("parts", nargs="*", metavar="PART", help=", ".join(test_commands()))
    bench = commands.add_parser("bench", help="the times")
    bench.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    bench.add_argument("--results", type=Path, default=HERE / "results", help="folder for the JSON")
    args = parser.parse_args()
    known = list(test_commands() if args.what == "test" else PARTS)
    for part in args.parts:
        if part not in known:
            parser.error(f"{part!r} is no part of {args.what}; choose from {', '.join(known)}")
    reason = obstacle()
    if reason:
        print(f"gpu-{args.what} needs an NVIDIA GPU and CuPy: {reason}.", file=sys.stderr)
        return 2
    parts = args.parts or known
    return run_tests(parts) if args.what == "test" else run_benchmark(parts, args.results)


if __name__ == "__main__":
    sys.exit(main())
