"""The kernels in cuda/, compiled by CuPy for the GPU at hand, on torch's memory and streams.

There are two kinds of them. `pairs` holds a vector in registers and serves 2x2 factors; `stages`
holds it in shared memory, or where that is too small in device memory, and serves any factors.
cuda/README.md explains both.
"""

import hashlib
from functools import cache
from math import prod
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import torch
from torch import Tensor

from .activation import as_complex
from .backends import Problem

FOLDER = Path(__file__).parents[1] / "cuda"

STORED = {
    torch.float32: "float",
    torch.float64: "double",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
}
FORMS = ("dense", "features", "tokens")  # enum Form of step.cuh
FUNCTIONS = {
    "pairs": ("forward", "backward", "product", "gradient"),
    "stages": ("forward", "backward", "product"),
    "lstm": ("forward", "backward"),
}


class Kernels(NamedTuple):
    """Kernels that are compiled together: template arguments of the functions of one kind.

    What changes from call to call, such as the batch and the length of sequences, is none of them.
    """

    kind: str  # a key of FUNCTIONS
    stored: str  # a value of STORED
    parts: int  # numbers in an element: 2 for complex states, 1 for real ones
    bits: int = 0  # pairs: log2 N
    form: int = 0  # pairs: enum Form of step.cuh
    activation: int = 0  # pairs: enum Activation

    def names(self) -> List[str]:
        """The C++ names of its functions."""
        names = []
        for function in FUNCTIONS[self.kind]:
            arguments = [self.stored]
            if self.kind != "lstm":
                arguments.append(self.parts)
            if self.kind == "pairs":
                ways = {"forward": (self.form, self.activation), "backward": (self.activation,)}
                arguments += [self.bits, *ways.get(function, ())]
            names.append(f"{self.kind}_{function}<{', '.join(map(str, arguments))}>")
        return names


# Constants of pairs.cuh and stages.cuh, to which a test holds them.
ELEMENTS_PER_THREAD = 4
PRODUCT_THREADS = 512
GRADIENT_THREADS = 256
# Double precision takes twice the registers: it is there to check with, in a single warp.
MAX_PAIR_BITS = {torch.float32: 10, torch.float64: 6, torch.bfloat16: 10, torch.float16: 10}
MAX_RUN = 3
STAGE_THREADS = 512
MAX_STAGES = 32

_PLAN = np.dtype(
    [("count", np.int32), ("columns", np.int32), ("stages", np.int32, (MAX_STAGES, 4))]
)


def _struct(numbers: str, pointers: str, plans: list) -> np.dtype:
    fields = [(name, np.int64) for name in numbers.split()]
    fields += [(name, np.uint64) for name in pointers.split()]
    return np.dtype([*fields, *plans])


# The arguments of the kernels, passed by value: `struct Call` of step.cuh, `LstmCall` of lstm.cu.
CALL = _struct(
    "steps batch size first inputs symbols activation adjoint capacity cached",
    "x weight bias factors h0 lengths states last d_states d_last delta d_bias d_h0 d_factors"
    " workspace",
    [("plan", _PLAN)],
)
LSTM_CALL = _struct(
    "steps batch size first inputs symbols capacity cached",
    "x weight bias factors h0 c0 lengths outputs kept h_n c_n z d_outputs d_h_n d_c_n delta d_h0"
    " d_c0 workspace",
    [("plans", _PLAN, 4)],
)
LSTM_VECTORS = 8  # kVectors of lstm.cu


class Geometry(NamedTuple):
    """How a launch is cut to size; `fields` are those of `struct Call` that follow from it."""

    grid: int
    block: Tuple[int, int]
    shared: int  # bytes of shared memory a block
    fields: Dict[str, Any]


def missing() -> Optional[str]:
    """What keeps CuPy from being used, or None."""
    try:
        import cupy  # noqa: F401
    except ImportError as error:
        major = (torch.version.cuda or "13").split(".")[0]
        return f"CuPy cannot be imported ({error}); pip install 'kron-plugin[cuda{major}]'"
    return None


def obstacle(problem: Problem) -> Optional[str]:
    """What keeps the kernels from serving, or None. Compiles some to find out."""
    if problem.dtype not in STORED:
        return f"it serves {', '.join(map(str, STORED))}, not {problem.dtype}"
    reason = missing()
    if reason is None:
        try:
            load(kernels_for([2, 2] * 2, problem.dtype, problem.is_complex))
        except RuntimeError as error:
            reason = str(error)
    return reason


def kernels_for(
    shapes: Sequence[int], dtype: torch.dtype, is_complex: bool, form: int = 0, activation: int = 0
) -> Kernels:
    """What serves factors of sizes P_0, Q_0, P_1, …"""
    bits, parts = len(shapes) // 2, 2 if is_complex else 1
    if set(shapes) == {2} and 2 <= bits <= MAX_PAIR_BITS[dtype]:
        return Kernels("pairs", STORED[dtype], parts, bits, form, activation)
    return Kernels("stages", STORED[dtype], parts)


@cache
def load(kernels: Kernels) -> Dict[str, Any]:
    """The functions by their short names, compiled on first use and cached by CuPy.

    Raises:
        RuntimeError: the compiler refused the source; the message holds what it said.
    """
    import cupy

    source = FOLDER / f"{kernels.kind}.cu"
    # CuPy's cache goes by the source and the options, and does not see what the source includes.
    digest = hashlib.sha256(b"".join(p.read_bytes() for p in sorted(FOLDER.glob("*.cuh"))))
    options = ("--std=c++17", f"-I{FOLDER.resolve()}", f"-DKRON_HEADERS={digest.hexdigest()[:16]}")
    module = cupy.RawModule(
        code=source.read_text(encoding="utf-8"), options=options, name_expressions=kernels.names()
    )
    try:
        return {
            function: module.get_function(name)
            for function, name in zip(FUNCTIONS[kernels.kind], kernels.names(), strict=True)
        }
    except cupy.cuda.compiler.CompileException as error:
        raise RuntimeError(f"{source.name} does not compile: {error}") from error


def launch(
    kernels: Kernels, function: str, device: torch.device, geometry: Geometry, **fields
) -> None:
    """Start a kernel on torch's current stream; tensors (None: null) and numbers by field name."""
    if geometry.grid == 0:  # a batch of no sequences, which CUDA refuses to launch
        return
    import cupy

    layout = LSTM_CALL if kernels.kind == "lstm" else CALL
    call = np.zeros(1, layout)
    for name, value in {**geometry.fields, **fields}.items():
        if isinstance(value, Tensor):
            value = value.data_ptr()
        call[name] = 0 if value is None else value
    kernel = load(kernels)[function]
    with cupy.cuda.Device(device.index), current_stream(device):
        if geometry.shared > 48 * 1024:  # what a block has without being asked for more
            kernel.max_dynamic_shared_size_bytes = geometry.shared
        # As bytes: of an array with fields CuPy asks for all of their names.
        arguments = (call.view(f"V{layout.itemsize}"),)
        kernel((geometry.grid,), geometry.block, arguments, shared_mem=geometry.shared)


class _Stream(NamedTuple):
    """A stream by the CUDA stream protocol, which not every torch of ours speaks."""

    address: int

    def __cuda_stream__(self) -> Tuple[int, int]:
        return 0, self.address


def current_stream(device: torch.device) -> Any:
    """torch's current stream as a context in which CuPy launches."""
    import cupy

    address = torch.cuda.current_stream(device).cuda_stream
    return cupy.cuda.Stream.from_external(_Stream(address))


def aligned(tensor: Tensor) -> Tensor:
    """The tensor, or a copy of it, contiguous and where loads of 16 bytes may start."""
    tensor = tensor.contiguous()
    return tensor if tensor.data_ptr() % 16 == 0 else tensor.clone()


@cache
def attribute(device: torch.device, name: str) -> int:
    """One of CUDA's device attributes."""
    import cupy

    return int(cupy.cuda.Device(device.index).attributes[name])


def geometry(
    kernels: Kernels,
    function: str,
    device: torch.device,
    shapes: Sequence[int],
    rows: int,
) -> Geometry:
    """The launch of `function` for so many sequences (forward, backward) or vectors (others)."""
    blocks = _pairs_geometry if kernels.kind == "pairs" else _stages_geometry
    return blocks(kernels, function, device, shapes, rows)


def _number_bytes(kernels: Kernels) -> int:
    return 8 if kernels.stored == "double" else 4


def _blocks(
    function: str, device: torch.device, rows: int, rows_per_block: int, threads: int
) -> int:
    """One a group of sequences; those that only walk over rows share them out."""
    blocks = -(-rows // rows_per_block)
    if function in ("forward", "backward"):
        return blocks
    resident = GRADIENT_THREADS if function == "gradient" else PRODUCT_THREADS
    return min(blocks, max(1, resident // threads) * attribute(device, "MultiProcessorCount"))


def _pairs_geometry(kernels, function, device, shapes, rows) -> Geometry:
    size = 1 << kernels.bits
    threads = size // ELEMENTS_PER_THREAD
    sequences = max(1, 32 // threads)
    number = _number_bytes(kernels) * kernels.parts
    exchange = 2 * size * number
    shared = exchange if threads > 32 else 0
    if function == "gradient":
        entries = 4 * kernels.bits * number
        shared = max(exchange + entries, threads * sequences // 32 * entries)
    grid = _blocks(function, device, rows, sequences, threads * sequences)
    return Geometry(grid, (threads, sequences), shared, {"size": size})


class _Plan(NamedTuple):
    """A product as passes (p, q, bits, offset) over a vector, the lowest digit first."""

    stages: List[Tuple[int, int, int, int]]
    capacity: int  # size of the longest vector on the way
    entries: int  # of all factors

    def field(self, columns: int) -> np.ndarray:
        """`struct Plan`."""
        if len(self.stages) > MAX_STAGES:
            raise ValueError(
                f"the CUDA kernels take up to {MAX_STAGES} factors (three 2x2 ones that are"
                f" neighbours count as one), not {len(self.stages)}"
            )
        if max(self.capacity, self.entries) > 2**31 // 4:
            raise ValueError(
                f"a vector or factor of {max(self.capacity, self.entries)} entries is too large for"
                " the CUDA kernels"
            )
        made = np.zeros((), _PLAN)
        made["count"], made["columns"] = len(self.stages), columns
        made["stages"][: len(self.stages)] = self.stages
        return made


def plan(shapes: Sequence[int], offset: int = 0) -> _Plan:
    """The product with factors P_0, Q_0, P_1, … whose entries begin at `offset`."""
    factors = list(zip(shapes[::2], shapes[1::2], strict=True))
    offsets = [0, *np.cumsum([p * q for p, q in factors]).tolist()]
    stages, size = [], prod(shapes[1::2])
    capacity, f = size, len(factors) - 1
    while f >= 0:
        run = 0
        while run < MAX_RUN and run <= f and factors[f - run] == (2, 2):
            run += 1
        p, q = (1 << run, 1 << run) if run else factors[f]
        stages.append((p, q, run, offset + offsets[f]))
        size = size // q * p
        capacity = max(capacity, size)
        f -= max(run, 1)
    return _Plan(stages, capacity, offsets[-1])


def _stages_geometry(kernels, function, device, shapes, rows) -> Geometry:
    product, columns = plan(shapes), prod(shapes[1::2])
    fields = {"size": prod(shapes[::2]), "plan": product.field(columns)}
    grid = _blocks(function, device, rows, 1, _stage_threads(product.capacity))
    return _vectors(kernels, device, grid, product.capacity, product.entries, 3, fields)


def lstm_geometry(
    kernels: Kernels, device: torch.device, gates: Sequence[Sequence[int]], batch: int
) -> Geometry:
    """The launch of an LSTM's kernel; `gates` are the sizes of each one's factors."""
    plans, entries = [], 0
    for shapes in gates:
        plans.append(plan(shapes, entries))
        entries += plans[-1].entries
    size = prod(gates[0][::2])
    fields = {"size": size, "plans": np.stack([product.field(size) for product in plans])}
    capacity = max(product.capacity for product in plans)
    return _vectors(kernels, device, batch, capacity, entries, LSTM_VECTORS, fields)


def _vectors(
    kernels: Kernels,
    device: torch.device,
    grid: int,
    capacity: int,
    entries: int,
    count: int,
    fields: Dict[str, Any],
) -> Geometry:
    """Room for a block's vectors and, beside them, the factors: shared memory if it is enough."""
    element = _number_bytes(kernels) * kernels.parts
    room = attribute(device, "MaxSharedMemoryPerBlockOptin")
    vectors = count * capacity * element
    in_shared = vectors <= room
    taken = vectors if in_shared else 0
    cached = entries if taken + entries * element <= room else 0
    fields = {**fields, "capacity": capacity, "cached": cached}
    if not in_shared:
        fields["workspace"] = torch.empty(grid * vectors, dtype=torch.uint8, device=device)
    return Geometry(grid, (_stage_threads(capacity), 1), taken + cached * element, fields)


def _stage_threads(capacity: int) -> int:
    """Threads of a block for vectors of so many elements."""
    return min(STAGE_THREADS, max(32, -(-capacity // 4 // 32) * 32))


def arranged(
    kernels: Kernels, factors: Tensor, shapes: Sequence[int], adjoint: bool
) -> Tensor:  # shape: (Σ P_f Q_f C,)
    """Factors, one after the other row by row, as the kernels read them.

    That is as they are for `pairs`, which turn them themselves, and column by column for `stages`;
    Wᴴ's for `adjoint`, whose columns are the conjugate rows of W.
    """
    if kernels.kind == "pairs":
        return aligned(factors.reshape(-1))
    if adjoint and kernels.parts == 2:
        factors = torch.view_as_real(as_complex(factors.view(-1, 2)).conj_physical())
    if adjoint:
        return aligned(factors.reshape(-1))
    parts = factors.view(-1, kernels.parts)
    if set(shapes) == {2}:
        return aligned(parts.view(-1, 2, 2, kernels.parts).transpose(1, 2).reshape(-1))
    sizes = [p * q for p, q in zip(shapes[::2], shapes[1::2], strict=True)]
    turned = [
        part.view(p, q, -1).transpose(0, 1).reshape(-1)
        for part, p, q in zip(parts.split(sizes), shapes[::2], shapes[1::2], strict=True)
    ]
    return aligned(torch.cat(turned))


def adjoint_shapes(shapes: Sequence[int]) -> List[int]:
    """Sizes of the factors of Wᴴ: rows and columns have changed places."""
    return [size for p, q in zip(shapes[::2], shapes[1::2], strict=True) for size in (q, p)]
