"""The operators of the fused backends, called by anybody: exported, by hand, short of memory, and
interrupted."""

import io
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from kron_plugin.modules import KRU, KRULSTM
from kron_plugin.ops.kron.flat import flatten
from kron_plugin.ops.native.compile import find_compiler

from ..conftest import run as run_command
from . import test_kron_lstm as lstm
from .recurrence_cases import random_case, worst_error

CELLS = ["kron_rnn", "kron_lstm"]


def problem(cell, steps=5, batch=3, form="features", bits=2):
    """What both passes of an operator are given, by name, before `every`."""
    if cell == "kron_rnn":
        case = random_case([(2, 2)] * bits, batch, steps, form=form, with_lengths=True)
        tensors = {"x": case.x, "factors": flatten(case.factors), "bias": case.bias, "h0": case.h0}
        more = {"shapes": [2] * 2 * bits, "is_complex": True, "activation": "modrelu"}
    else:
        case = lstm.random_case([[(2, 2)] * bits] * 4, batch, steps, form, True)
        factors = flatten([w for gate in case.factors for w in gate])
        h0, c0 = case.state
        tensors = {"x": case.x, "factors": factors, "bias": case.bias, "h0": h0, "c0": c0}
        more = {"shapes": [2] * 8 * bits, "counts": [bits] * 4}
    tensors = {name: tensor.detach() for name, tensor in tensors.items()}
    return {**tensors, "weight": case.weight.detach(), "lengths": case.lengths, **more}


def forward(cell, **given):
    """The arguments of the forward pass."""
    return {**problem(cell, **given), "need_output": True, "every": 2, "threads": 2, "keep": True}


def backward(cell, **given):
    """The arguments of the backward pass, with gradients of ones and states of zeros."""
    same = problem(cell, **given)
    x, h0 = same["x"], same["h0"]
    outputs, last = h0.new_ones(x.shape[0], *h0.shape), torch.ones_like(h0)
    segments = -(-x.shape[0] // 2)
    if cell == "kron_rnn":
        kept = h0.new_zeros(segments, *h0.shape)
        first = {"d_states": outputs, "d_last": last, "states": h0.new_zeros(0), "kept": kept}
    else:
        kept = h0.new_zeros(segments, 2, *h0.shape)
        first = {"d_outputs": outputs, "d_h_n": last, "d_c_n": last, "kept": kept}
    return {**first, **same, "every": 2, "threads": 2, "need_d_x": True}


def spoilt(value):
    """Other values of the same kind, none of which an operator can do with."""
    if isinstance(value, torch.Tensor):
        if value.numel() > 0:
            yield value.new_zeros(0)
            yield value.flatten()[:-1]
            yield value[:-1]
            yield value.flatten().repeat(2)
        yield torch.ones(3, 1, 4, 1)
        yield value.to(torch.float32 if value.is_floating_point() else torch.float64)
        yield torch.ones(value.shape, dtype=torch.complex128)
    elif isinstance(value, list):
        yield from ([], value[:-1], [*value, 2], [0] * len(value), [-2] * len(value))
        yield [2**31] * len(value)
    elif isinstance(value, int) and not isinstance(value, bool):
        yield from (0, -1, -(2**62))


def wrong_calls(cell, backend):
    """(name, value) of single arguments that no call may be made with, and the call."""
    for arguments, suffix in ((forward(cell), ""), (backward(cell), "_backward")):
        operator = getattr(torch.ops.kron_plugin, f"{cell}_{backend}{suffix}")
        operator(*arguments.values())
        for name, value in arguments.items():
            for other in spoilt(value):
                if name in ("kept", "states") and not other.numel():
                    continue  # not kept: they are made again
                if name == "threads" and backend == "cuda":
                    continue  # it has none of the CPU's
                if name == "x" and not suffix and other.shape[1:] == value.shape[1:]:
                    continue  # which alone tells how many steps there are
                yield name, other, operator, {**arguments, name: other}.values()


def check_wrong_calls(cell, backend):
    count = 0
    for name, value, operator, arguments in wrong_calls(cell, backend):
        try:
            operator(*arguments)
        except (ValueError, TypeError, IndexError, RuntimeError):
            count += 1
        else:
            pytest.fail(f"{operator}: {name}={value!r} was taken")
    assert count > 100


@pytest.mark.parametrize("cell", CELLS)
def test_a_call_with_what_does_not_fit_raises(cell):
    """Each buffer too short, empty, of another type or shape; sizes that are none."""
    check_wrong_calls(cell, "cpu")


@pytest.mark.parametrize(
    ("cell", "options", "call"),
    [
        (KRU, {}, {"need_output": False}),
        (KRU, {"checkpoint_every": 3}, {}),
        (KRULSTM, {}, {}),
        (KRULSTM, {"checkpoint_every": 3}, {"need_output": False}),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_what_was_exported_without_gradients_has_them(cell, options, call):
    """Whether states are kept is part of the graph: they are made again."""
    layer = cell(3, 8, backend="cpu", **options).double()
    x = torch.randn(5, 4, 3, dtype=torch.float64)
    with torch.no_grad():
        exported = torch.export.export(layer, (x,), call)
    file = io.BytesIO()
    torch.export.save(exported, file)
    file.seek(0)
    module = torch.export.load(file).module()

    def gradients(module):
        output, state = module(x, **call)
        last = state if isinstance(state, torch.Tensor) else sum(state)
        total = last.square().sum() + output.square().sum()
        return torch.autograd.grad(total, list(module.parameters()))

    expected = dict(zip([n for n, _ in layer.named_parameters()], gradients(layer), strict=True))
    have = dict(zip([n for n, _ in module.named_parameters()], gradients(module), strict=True))
    assert have.keys() == expected.keys()
    assert worst_error([have[name] for name in expected], list(expected.values())) < 1e-14


class Alarm(Exception):  # noqa: N818
    """What the handler of a signal raises."""


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("arguments", [forward, backward])
@pytest.mark.parametrize("cell", CELLS)
def test_a_signal_ends_a_call(cell, arguments, threads, monkeypatch):
    """A call of many seconds, within half a second and what a busy machine adds to it."""
    monkeypatch.undo()  # filling new memory with NaN takes long

    def ring(number, frame):
        raise Alarm

    given = arguments(cell, steps=2, batch=64, form="tokens", bits=10)
    suffix = "" if arguments is forward else "_backward"
    operator = getattr(torch.ops.kron_plugin, f"{cell}_cpu{suffix}")
    operator(*given.values())  # compiled and loaded
    steps = 2**13
    given["x"] = given["x"][:1].expand(steps, -1)
    given["lengths"] = None
    given["threads"] = threads
    if arguments is forward:
        given |= {"need_output": False, "keep": False}
    else:
        given |= {"d_outputs" if cell == "kron_lstm" else "d_states": None, "need_d_x": False}
        kept = given["kept"]
        given |= {"every": steps, "kept": kept[:1].contiguous()}
    before = signal.signal(signal.SIGALRM, ring)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        start = time.monotonic()
        with pytest.raises(Alarm):
            operator(*given.values())
        assert time.monotonic() - start < 0.2 + 1.0
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# No memory for any thread but the first: what a system short of it may do, at will.
NO_MEMORY = """
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <cstddef>
static bool armed = false;
static bool refuse() { return armed && syscall(SYS_gettid) != getpid(); }
extern "C" {
void* __libc_malloc(size_t);
void* __libc_calloc(size_t, size_t);
void* __libc_memalign(size_t, size_t);
void arm() { armed = true; }
void* malloc(size_t n) { return refuse() ? nullptr : __libc_malloc(n); }
void* calloc(size_t n, size_t m) { return refuse() ? nullptr : __libc_calloc(n, m); }
void* aligned_alloc(size_t a, size_t n) { return refuse() ? nullptr : __libc_memalign(a, n); }
void* mmap(void* at, size_t n, int protection, int flags, int file, off_t offset) {
  return refuse() ? MAP_FAILED : (void*)syscall(SYS_mmap, at, n, protection, flags, file, offset);
}
}
"""
CALLS = """if True:
    import ctypes, resource, torch
    from tests.ops import test_kron_lstm as lstm
    from tests.ops.recurrence_cases import PAIRS, random_case, run
    torch.set_num_threads(1)
    cases = [
        (run, random_case(PAIRS[name], 40, 3, form=form, with_lengths=True))
        for name, form in [("mixed", "features"), ("2x2s", "tokens"), ("tall first", "dense")]
    ] + [(lstm.run, lstm.random_case(lstm.GATES["each its own"], 40, 3, "tokens", True))]
    for every in (1, 2):
        expected = [call(case, backend="cpu", checkpoint_every=every) for call, case in cases]
        ctypes.CDLL(None).arm()
        for (call, case), results in zip(cases, expected, strict=True):
            for have, want in zip(call(case, backend="cpu", checkpoint_every=every), results):
                assert torch.equal(have, want)
    case = random_case([(2, 2)] * 13, 64, 2, form="tokens", dtype=torch.float32)
    run(case, backend="cpu", need_output=False)
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 20 * 2**20,) * 2)
    try:
        run(case, backend="cpu", need_output=False)
    except MemoryError as error:
        print(error)
"""


@pytest.mark.skipif("asan" in os.environ.get("LD_PRELOAD", ""), reason="memory is the sanitizer's")
def test_threads_ask_for_no_memory(tmp_path):
    """One that gets none ends the process, for to throw takes memory too; the caller raises."""
    source, library = tmp_path / "no_memory.cpp", tmp_path / "no_memory.so"
    source.write_text(NO_MEMORY)
    command = [*find_compiler(), "-O1", "-shared", "-fPIC", str(source), "-o", str(library)]
    subprocess.run(command, check=True)
    environment = {**os.environ, "KRON_NUM_THREADS": "4", "LD_PRELOAD": str(library)}
    command = [sys.executable, "-c", CALLS]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    said = "kron_rnn_forward: no memory for the states in progress\n"
    assert (result.returncode, result.stdout) == (0, said), result.stderr[-2000:]


IMPORTED_AGAIN = """
import importlib, sys, torch
infer, left = torch.library.infer_schema, [4]
def interrupted(*args, **kwargs):
    left[0] -= 1
    if left[0] == 0:
        raise KeyboardInterrupt
    return infer(*args, **kwargs)
torch.library.infer_schema = interrupted
try:
    import kron_plugin.ops
except KeyboardInterrupt:
    print("interrupted")
torch.library.infer_schema = infer
for _ in range(2):
    for name in [name for name in sys.modules if name.startswith("kron_plugin")]:
        del sys.modules[name]
    from kron_plugin.modules import KRU
    kru = KRU(3, 8)
    kru(torch.randn(5, 2, 3))[0].sum().backward()
from kron_plugin.ops import operators
importlib.reload(operators)
kru(torch.randn(5, 2, 3))[0].sum().backward()
print(len(kru.factors))
"""


def test_the_package_can_be_imported_again(tmp_path):
    """After an import that was interrupted, and by whoever reloads what has changed."""
    result = run_command(sys.executable, "-c", IMPORTED_AGAIN, cwd=tmp_path)
    assert result.stdout == "interrupted\n3\n", result.stdout
