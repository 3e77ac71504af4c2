"""The parts of `gpu.py bench`: KRU beside cuDNN and others, the product alone, and the scaling."""

from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, List

import torch
from gpu_peers import (
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
from gpu_record import Record
from timing import by_events, interleave
from torch import nn

SIZES = [Setting(128, 64, 2**n) for n in range(4, 17, 2)]
BATCHES = [Setting(4**n, 256, 512) for n in range(7)]
SCALES = {"N": ("size", SIZES), "B": ("batch", BATCHES)}
OTHERS = {"N": "B={batch}", "B": "N={size}"}


def attempt(name: str, make: Callable[[], Any]) -> Any:
    """The result of `make`; None, after the reason is printed, if it fails, as a peer may."""
    try:
        return make()
    except Exception as error:
        print(f"{name} is left out: {type(error).__name__}: {error}", flush=True)
        return None


def graphed(run: Callable[[], None]) -> Callable[[], None]:
    """A call as a CUDA graph, so that Python's time for each launch does not count."""
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
    finally:  # after a failed capture torch may stay on its stream
        torch.cuda.set_stream(before)

    def replay(reads_from: Callable[[], None] = run) -> None:
        graph.replay()

    return replay


def per_factor(setting: Setting) -> Callable[[], None]:
    """One launch for each factor of each step; its result is compared with ours first."""
    from per_factor import PerFactor

    from kron_plugin.ops import kron_rnn

    factors = torch.stack(unitary_factors(setting.size, "cuda")).detach()
    bias = torch.full((setting.size,), -0.01, device="cuda", requires_grad=True)
    h0 = torch.rand(setting.batch, 2 * setting.size, device="cuda")
    x = torch.rand(setting.steps, setting.batch, 2 * setting.size, device="cuda")
    gradient = torch.randn_like(x)
    trained = torch.view_as_real(factors).requires_grad_()

    def call(steps: int) -> torch.Tensor:
        return PerFactor.apply(x[:steps], trained, bias, h0)

    def ours(steps: int) -> torch.Tensor:
        matrices = list(torch.view_as_complex(trained).unbind())
        return kron_rnn(x[:steps], matrices, bias, h0, backend="cuda")[0]

    for a, b in zip(
        *(torch.autograd.grad(f(5), (trained, bias), gradient[:5]) for f in (call, ours)),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * float(b.abs().max()))
    return graphed(lambda: call(setting.steps).backward(gradient))


def peers(setting: Setting) -> Dict[str, Callable[[], None]]:
    """The candidates of `recurrences` that run here. There are also KRU and cuDNN's LSTM as graphs,
    KRU in bf16, and the LSTM with TF32 and in bf16."""
    candidates = recurrences(setting, "cuda")
    candidates["KRU"]()  # KRU has to run
    sizes = sorted({setting.size, 128}, reverse=True)
    in_graphs = ["KRU", *(f"LSTM({size})" for size in sizes)]
    more = {
        **{f"{name}, graph": partial(graphed, candidates[name]) for name in in_graphs},
        "KRU bf16": lambda: kru_step(setting, "cuda", "cuda", torch.bfloat16),
        "one launch a factor and step": lambda: per_factor(setting),
    }
    for name, make in more.items():
        made = attempt(name, make)
        if made is not None:
            candidates[name] = made

    def with_tf32(run: Callable[[], None]) -> Callable[[], None]:
        def call() -> None:
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
            try:
                run()
            finally:
                torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False

        return call

    for size in sizes:
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
    """Bytes a second that a large copy reads and writes."""
    source = torch.empty(1 << 28, device="cuda")
    target = torch.empty_like(source)
    seconds = interleave({"copy": lambda: target.copy_(source)}, 10, seconds=by_events)["copy"]
    return 2 * source.numel() * source.element_size() / seconds


def floors(setting: Setting, rate: float) -> Dict[str, float]:
    """Lower bounds of the kernels' milliseconds, as GPU.md counts them: seven passes over the
    states at the measured bandwidth, and the steps of one sequence, alone on the GPU."""
    passes = 7 * 8 * setting.batch * setting.steps * setting.size
    alone = {"step": graphed(kru_step(setting._replace(batch=1), "cuda", "cuda"))}
    latency = interleave(alone, 5, seconds=by_events)["step"]
    return {"bandwidth_floor_ms": 1000 * passes / rate, "latency_floor_ms": 1000 * latency}


def kernel_times(run: Callable[[], None]) -> Dict[str, float]:
    """Milliseconds of each kernel in one call, the longest first."""
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        run()
        torch.cuda.synchronize()
    times = {e.key: e.self_device_time_total / 1000 for e in profile.key_averages()}
    return dict(sorted(times.items(), key=lambda item: -item[1]))


def bench_recurrences(record: Record) -> None:
    """The two settings beside all peers, with floors, and KRU's time in each kernel."""
    rate, rows = bandwidth(), []
    print(f"a large copy: {rate / 1e12:.2f} TB/s", flush=True)
    for setting in SETTINGS:
        seconds = interleave(peers(setting), 5, seconds=by_events)
        title = f"B={setting.batch} T={setting.steps} N={setting.size}, forward and backward"
        found = table(title, seconds)
        least = floors(setting, rate)
        best = 1000 * seconds.get("KRU, graph", seconds["KRU"])
        shares = {name.replace("_ms", "_share"): ms / best for name, ms in least.items()}
        parts = attempt("profile", lambda s=setting: kernel_times(kru_step(s, "cuda", "cuda")))
        found[0].update(least, **shares, bytes_per_second=rate, kernels_ms=parts)
        print({name: round(value, 3) for name, value in {**least, **shares}.items()})
        for name, ms in list((parts or {}).items())[:12]:
            print(f"  {ms:8.3f} ms  {name[:100]}", flush=True)
        rows += found
        record.keep("recurrence", rows)


def bench_product(record: Record) -> None:
    """The product W x alone."""
    vectors, size = PRODUCT
    candidates = those_that_run(products("cuda"))
    for name, run in list(candidates.items()):
        graph = attempt(f"{name}, graph", partial(graphed, run))
        if graph is not None:
            candidates[f"{name}, graph"] = graph
    seconds = interleave(candidates, 20, seconds=by_events)
    record.keep("product", table(f"real W x, {vectors} vectors, N={size}", seconds))


def bench_scaling(record: Record) -> None:
    """Time and memory of KRU over N and over B, with a picture."""
    rows: List[dict] = []
    for title, (_, settings) in SCALES.items():
        for setting in settings:
            rows.append(_scale(title, setting))
            record.keep("scaling", rows)
    _plot_scaling(rows, record.path.with_name(f"{record.path.stem}_scaling.png"))


def _scale(title: str, setting: Setting) -> dict:
    run = kru_step(setting, "cuda", "cuda")
    seconds = interleave({"KRU": run}, 5, budget=10, seconds=by_events)["KRU"]
    torch.cuda.reset_peak_memory_stats()
    run()
    memory = torch.cuda.max_memory_allocated() / 2**20
    row = {"setting": title, **setting._asdict(), "ms": 1000 * seconds, "MiB": memory}
    print(f"{title}: {row}", flush=True)
    return row


def _plot_scaling(rows: List[dict], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    for axes, (title, (size, _)) in zip(figure.subplots(1, 2), SCALES.items(), strict=True):
        found = [row for row in rows if row["setting"] == title]
        at = [row[size] for row in found]
        axes.loglog(at, [row["ms"] for row in found], "o-", label="ms, forward and backward")
        axes.loglog(at, [row["MiB"] for row in found], "s--", label="MiB at most")
        axes.set_xscale("log", base=2)
        axes.set(xlabel=title, title=f"T={found[0]['steps']}, " + OTHERS[title].format(**found[0]))
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=100)


PARTS = {"recurrence": bench_recurrences, "product": bench_product, "scaling": bench_scaling}
