"""The host side of the CUDA kernels, and the compilers' reports; no test needs a GPU."""

import logging
import re
import sys
from itertools import cycle, product

import pytest
import torch

from kron_plugin.ops import ACTIVATIONS, backends, cuda_geometry, cuda_kernels, kron_rnn
from kron_plugin.ops.cells import rnn
from kron_plugin.ops.cuda_geometry import geometry, plan
from kron_plugin.ops.cuda_kernels import FOLDER, FORMS, STORED, Kernels

from . import cuda_on_cpu
from .recurrence_cases import KRU, random_case, run

CPU = torch.device("cpu")
CUDA = torch.device("cuda", 0)

# The most registers that a thread may take; cuda/README.md explains the limits.
REGISTERS = {"forward": 168, "backward": 176, "product": 128, "gradient": 224}
REGISTERS_OF_ALL = {
    "butterfly": 255,
    "stages": 128,
}  # in double precision; for a block of 512


def compiled():
    """Kernels of every kind and type: for 2x2 factors the smallest and the largest, which take
    turns through all forms of input and activations."""
    ways = cycle(product(range(len(FORMS)), range(len(ACTIVATIONS))))
    for dtype, stored in STORED.items():
        for cell in sorted(path.stem for path in FOLDER.glob("cells/*.cuh") if path.stem != "rnn"):
            yield Kernels("stages", stored, 1, cell=cell)
        for parts in (1, 2):
            yield Kernels("stages", stored, parts)
            for bits in (2, cuda_kernels.MAX_BUTTERFLY_BITS[dtype]):
                yield Kernels("butterfly", stored, parts, bits, *usable(next(ways), parts))


def usable(way, parts):
    """tanh is for real states only."""
    form, activation = way
    return form, (0 if parts == 2 and activation == list(ACTIVATIONS).index("tanh") else activation)


COMPILED = [
    pytest.param(kernels, newer, id="-".join(map(str, (*kernels, newer))))
    for kernels, newer in zip(compiled(), cycle((80, 90)), strict=False)
]


@pytest.mark.parametrize(("kernels", "newer"), COMPILED)
def test_compiles_without_spills(kernels, newer):
    """For the oldest architecture and a newer one; the smallest 2x2 kernels for the oldest only."""
    for architecture in ("oldest",) if kernels.bits == 2 else ("oldest", newer):
        check_compilation(kernels, architecture)


def check_compilation(kernels, architecture):
    nvrtc = pytest.importorskip("cupy.cuda", reason="pip install 'kron-plugin[test]'").nvrtc
    if architecture == "oldest":
        architecture = min(nvrtc.getSupportedArchs())
    program = nvrtc.createProgram(kernels.code(), f"{kernels.kind}.cu", [], [])
    for name in kernels.names():
        nvrtc.addNameExpression(program, name)
    options = ["--std=c++17", f"-I{FOLDER.resolve()}", "--ptxas-options=-v"]
    try:
        nvrtc.compileProgram(program, [*options, f"-arch=sm_{architecture}"])
    finally:
        report = nvrtc.getProgramLog(program)
    entries = re.findall(
        r"entry function '_Z\d+[a-z]+_([a-z]+).*?(\d+) bytes spill stores.*?Used (\d+) registers",
        report,
        re.DOTALL,
    )
    assert {name for name, _, _ in entries} == set(cuda_kernels.FUNCTIONS[kernels.kind]), report
    for function, spilled, registers in entries:
        limit = REGISTERS_OF_ALL[kernels.kind]
        if kernels.kind == "butterfly" and kernels.stored != "double":
            limit = REGISTERS[function]
        assert int(registers) <= limit, (function, report)
        assert kernels.kind != "butterfly" or int(spilled) == 0, (function, report)


def test_the_peer_of_the_benchmark_compiles():
    nvrtc = pytest.importorskip("cupy.cuda", reason="pip install 'kron-plugin[test]'").nvrtc
    source = FOLDER.resolve().parent / "benchmarks" / "per_factor.cu"
    if not source.exists():
        pytest.skip("benchmarks come with a checkout only")
    program = nvrtc.createProgram(source.read_text(), source.name, [], [])
    nvrtc.compileProgram(program, ["--std=c++17", "-arch=sm_80"])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("R", cuda_geometry.ELEMENTS_PER_THREAD),
        ("kProductThreads", cuda_geometry.PRODUCT_THREADS),
        ("kGradientThreads", cuda_geometry.GRADIENT_THREADS),
        ("kMaxRun", cuda_geometry.MAX_RUN),
        ("kStageThreads", cuda_geometry.STAGE_THREADS),
        ("kProductVectors", cuda_geometry.PRODUCT_VECTORS),
        ("kMaxStages", cuda_kernels.MAX_STAGES),
        ("kMaxProducts", cuda_kernels.MAX_PRODUCTS),
    ],
)
def test_constants_are_those_of_the_headers(name, value):
    text = "".join(path.read_text() for path in FOLDER.glob("*.cuh"))
    assert re.findall(rf"constexpr int (?:.*, )?{name} = (\d+)", text) == [str(value)]


def test_butterfly_bits_are_those_of_the_headers():
    names = ("kThreadBits", "kLaneBits", "kWarpBits")
    text = (FOLDER / "butterfly.cuh").read_text()
    sizes = [int(re.search(rf"{name} = (\d+)", text)[1]) for name in names]
    for dtype, bits in cuda_kernels.MAX_BUTTERFLY_BITS.items():
        assert bits == (sum(sizes[:2]) - 1 if dtype == torch.float64 else sum(sizes))


@pytest.mark.parametrize(("name", "names"), [("Form", FORMS), ("Activation", list(ACTIVATIONS))])
def test_numbers_in_names_are_those_of_the_headers(name, names):
    text = "".join(path.read_text() for path in FOLDER.rglob("*.cuh"))
    words = re.search(rf"enum {name} \{{(.*?)\}};", text)[1].split(",")
    assert [word.strip()[1:].lower() for word in words] == list(names)


@pytest.fixture
def fake(monkeypatch, tmp_path):
    """A stand-in for CuPy that records its calls."""
    cuda_on_cpu.install(monkeypatch, tmp_path)
    return sys.modules["cupy"]


@pytest.mark.parametrize(
    ("bits", "threads", "sequences", "shared"),
    [(2, 1, 32, 0), (5, 8, 4, 0), (7, 32, 1, 0), (8, 64, 1, 4096), (10, 256, 1, 16384)],
)
def test_geometry_of_butterfly(fake, bits, threads, sequences, shared):
    kernels = Kernels("butterfly", "float", 2, bits)
    cut = geometry(kernels, "forward", CPU, [[2, 2] * bits], rows=65)
    assert cut.block == (threads, sequences)
    assert cut.grid == -(-65 // sequences)
    assert cut.shared == shared
    walk = geometry(kernels, "gradient", CPU, [[2, 2] * bits], rows=10**6)
    per_multiprocessor = cuda_geometry.GRADIENT_THREADS // max(32, threads)
    assert walk.grid == per_multiprocessor * cuda_on_cpu.H100["MultiProcessorCount"]
    assert walk.shared >= 4 * bits * 8


def test_geometry_of_stages(fake):
    kernels = Kernels("stages", "float", 2)
    small = geometry(kernels, "forward", CPU, [[3, 3, 5, 5]], rows=7)
    assert (small.grid, small.block) == (7, (32, 1))
    assert small.fields["cached"] == 9 + 25
    assert small.shared == (3 * 15 + 9 + 25) * 8
    large_factor = geometry(kernels, "forward", CPU, [[512, 512]], rows=7)
    assert large_factor.fields["cached"] == 0
    assert large_factor.shared == 3 * 512 * 8
    long_vector = geometry(kernels, "forward", CPU, [[2, 2] * 16], rows=7)
    assert long_vector.fields["workspace"].numel() == 7 * 3 * 2**16 * 8
    assert (long_vector.shared, long_vector.block) == (4 * 16 * 8, (512, 1))


def test_plan_joins_neighbouring_pairs():
    stages, capacity, entries = plan([2, 2, 2, 2, 2, 2, 2, 2, 3, 5, 5, 3], offset=100)
    assert [stage[:3] for stage in stages] == [(5, 3, 0), (3, 5, 0), (8, 8, 3), (2, 2, 1)]
    assert [stage[3] for stage in stages] == [131, 116, 112, 100]
    assert (capacity, entries) == (16 * 25, 46)


def test_geometry_of_several_products(fake):
    products = [[3, 3, 5, 5], [15, 15], [3, 5, 5, 3], [5, 5, 3, 3]]
    cut = geometry(Kernels("stages", "float", 1, cell="lstm"), "forward", CPU, products, 7, 8)
    entries = 34 + 225 + 30 + 34
    assert (cut.grid, cut.block) == (7, (32, 1))
    assert cut.shared == (8 * 25 + entries) * 4
    assert [stages[0][3] for stages in cut.fields["plans"]["stages"]] == [9, 34, 274, 314]


def test_too_many_factors_are_named(fake):
    with pytest.raises(ValueError, match="up to 32 factors"):
        geometry(Kernels("stages", "float", 1), "forward", CPU, [[1, 1] * 33], rows=1)


def test_a_call_compiles_nothing_for_its_batch_and_steps(fake, monkeypatch):
    made = []

    class Counting(cuda_on_cpu.RawModule):
        def __init__(self, code, options, name_expressions):
            made.append(name_expressions)
            super().__init__(code, options, name_expressions)

    monkeypatch.setattr(fake, "RawModule", Counting)
    for batch, steps in [(1, 1), (2, 5), (9, 2)]:
        run(random_case(KRU, [(2, 2)] * 2, batch, steps, dtype=torch.float32), "cuda")
    assert made == [Kernels("butterfly", "float", 2, 2).names()]


def test_launches_go_to_torchs_stream(fake, monkeypatch):
    seen = []

    def from_external(stream):
        seen.append(stream.__cuda_stream__())
        return cuda_on_cpu.nullcontext()

    monkeypatch.setattr(fake.cuda.Stream, "from_external", from_external)
    run(random_case(KRU, [(2, 2)] * 2, 1, 1, dtype=torch.float32), "cuda")
    # The protocol's version, and the address: forward, backward, gradient of the factors.
    assert seen == [(0, cuda_on_cpu.STREAM)] * 3


def test_no_cupy(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    problem = backends.Problem(CUDA, torch.float32, True)
    with pytest.raises(RuntimeError, match=r"pip install 'kron-plugin\[cuda12\]'"):
        rnn.recurrence.backends.choose("cuda", problem)
    backends.log_once.cache_clear()
    caplog.set_level(logging.INFO)
    assert rnn.recurrence.backends.choose("auto", problem) == "reference"
    assert "CuPy" in caplog.text


def test_no_gpu():
    x, bias, h0 = torch.zeros(2, 3, 4), torch.zeros(4), torch.zeros(3, 4)
    with pytest.raises(RuntimeError, match="tensors on a cuda device, not on cpu"):
        kron_rnn(x, [torch.eye(4)], bias, h0, backend="cuda")


def test_a_kernel_that_does_not_compile(fake, monkeypatch):
    def refuse(*args, **kwargs):
        raise fake.cuda.compiler.CompileException("expected a ';'")

    monkeypatch.setattr(cuda_on_cpu.RawModule, "get_function", refuse)
    monkeypatch.setattr(cuda_on_cpu.RawModule, "__init__", lambda *args, **kwargs: None)
    problem = backends.Problem(CPU, torch.float32, True)
    with pytest.raises(RuntimeError, match=r"butterfly.cu does not compile: expected a ';'"):
        rnn.recurrence.backends.choose("cuda", problem)


def test_a_type_that_no_kernel_stores():
    problem = backends.Problem(CUDA, torch.float8_e5m2, True)
    with pytest.raises(RuntimeError, match=r"serves torch\.float32"):
        rnn.recurrence.backends.choose("cuda", problem)


def test_calls_are_laid_out_as_in_the_sources():
    body = re.search(r"struct Call \{(.*?)\n\};", (FOLDER / "step.cuh").read_text(), re.DOTALL)[1]
    body = re.sub(r"//.*", "", body)
    names = [name for line in body.split(";") for name in re.findall(r"(\w+)(?=,|$|\[)", line)]
    assert names == list(cuda_kernels.CALL.names)
    assert cuda_kernels.CALL.itemsize < 4096  # the limit of a kernel's arguments
