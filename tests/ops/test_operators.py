"""The operators of the fused backends: called directly, short of memory, interrupted."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from kron_plugin.ops.kron.flat import flatten, shapes_of
from kron_plugin.ops.native.compile import find_compiler
from kron_plugin.ops.recurrence.arguments import Arguments

from ..conftest import run as run_command
from .recurrence_cases import KINDS, ONE_OF_EACH_CELL, random_case

cells = pytest.mark.parametrize("kind", ONE_OF_EACH_CELL)


def operator(kind, backend, suffix=""):
    return getattr(torch.ops.kron_plugin, f"kron_{KINDS[kind].cell}_{backend}{suffix}")


def problem(kind, steps=5, batch=3, form="features", bits=2):
    """The arguments of both passes of an operator, by name."""
    case = random_case(KINDS[kind], [(2, 2)] * bits, batch, steps, form, True)
    together = [w for product in case.factors for w in product]
    tensors = (case.x, flatten(together), case.bias, torch.stack(case.state), case.weight)
    return Arguments(
        *(None if tensor is None else tensor.detach() for tensor in tensors),
        case.lengths,
        shapes_of(together),
        [len(product) for product in case.factors],
        case.kind.is_complex,
        case.kind.activation,
        every=2,
        threads=2,
    )._asdict()


def forward(kind, **given):
    """The arguments of the forward pass."""
    return {**problem(kind, **given), "need_output": True, "keep": True}


def backward(kind, **given):
    """The arguments of the backward pass, with gradients of ones and states of zeros."""
    same = problem(kind, **given)
    steps, state = same["x"].shape[0], same["state"]
    return {
        "d_outputs": state.new_ones(steps, *state.shape[1:]),
        "d_last": torch.ones_like(state),
        "outputs": state.new_zeros(0),
        "kept": state.new_zeros(-(-steps // 2) + 1, *state.shape),
        **same,
        "need_d_x": True,
    }


@pytest.mark.parametrize("form", ["dense", "features", "tokens"])
@cells
def test_opcheck(kind, form, monkeypatch):
    monkeypatch.undo()  # opcheck compares results that it asked not to be written
    for need_output, every in [(True, 1), (False, 1), (True, 2)]:
        given = forward(kind, form=form) | {"need_output": need_output, "every": every}
        for value in given.values():
            if isinstance(value, torch.Tensor) and value.is_floating_point():
                value.requires_grad_()
        torch.library.opcheck(operator(kind, "cpu").default, tuple(given.values()))


def spoilt(value):
    """Other values of the same kind, all wrong for an operator."""
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


def wrong_calls(kind, backend):
    """(name, value) of single arguments that are wrong, and the call with them."""
    for arguments, suffix in ((forward(kind), ""), (backward(kind), "_backward")):
        called = operator(kind, backend, suffix)
        called(*arguments.values())
        for name, value in arguments.items():
            for other in spoilt(value):
                if name in ("kept", "outputs") and not other.numel():
                    continue  # empty means not kept: they are computed again
                if name == "threads" and backend == "cuda":
                    continue  # it does not use the CPU's threads
                if name == "x" and not suffix and other.shape[1:] == value.shape[1:]:
                    continue  # valid: only x gives the number of steps
                yield name, other, called, {**arguments, name: other}.values()


def check_wrong_calls(kind, backend):
    count = 0
    for name, value, called, arguments in wrong_calls(kind, backend):
        try:
            called(*arguments)
        except (ValueError, TypeError, IndexError, RuntimeError):
            count += 1
        else:
            pytest.fail(f"{called}: {name}={value!r} was taken")
    assert count > 100


@cells
def test_a_call_with_what_does_not_fit_raises(kind):
    """Each buffer too short, empty, or of another type or shape; impossible sizes."""
    check_wrong_calls(kind, "cpu")


class Alarm(Exception):  # noqa: N818
    """What the handler of a signal raises."""


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("arguments", [forward, backward])
@cells
def test_a_signal_ends_a_call(kind, arguments, threads, monkeypatch):
    """A call of many seconds ends within half a second, or more on a busy machine."""
    monkeypatch.undo()  # filling new memory with NaN takes long

    def ring(number, frame):
        raise Alarm

    given = arguments(kind, steps=2, batch=64, form="tokens", bits=10)
    called = operator(kind, "cpu", "" if arguments is forward else "_backward")
    called(*given.values())  # compiled and loaded
    steps = 2**13
    given["x"] = given["x"][:1].expand(steps, -1)
    given["lengths"] = None
    given["threads"] = threads
    if arguments is forward:
        given |= {"need_output": False, "keep": False}
    else:
        given |= {"d_outputs": None, "need_d_x": False, "every": steps}
    before = signal.signal(signal.SIGALRM, ring)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        start = time.monotonic()
        with pytest.raises(Alarm):
            called(*given.values())
        assert time.monotonic() - start < 0.2 + 1.0
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# No memory for any thread but the first, as on a system short of memory.
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
    from tests.ops.recurrence_cases import KINDS, KRU, LSTM, SHAPES, equal, random_case, run
    torch.set_num_threads(1)
    cases = [
        random_case(kind, SHAPES[name], 40, 3, form, True) for kind, name, form in [
            (KRU, "mixed", "features"), (KRU, "2x2s", "tokens"), (KRU, "tall first", "dense"),
            (LSTM, "mixed", "tokens"),
        ]
    ]
    for every in (1, 2):
        expected = [run(case, "cpu", checkpoint_every=every) for case in cases]
        ctypes.CDLL(None).arm()
        for case, results in zip(cases, expected, strict=True):
            assert equal(run(case, "cpu", checkpoint_every=every), results)
    case = random_case(KRU, [(2, 2)] * 9 + [(16, 16)], 64, 2, "tokens", dtype=torch.float32)
    run(case, "cpu", need_output=False)
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 20 * 2**20,) * 2)
    try:
        run(case, "cpu", need_output=False)
    except MemoryError as error:
        print(error)
"""


@pytest.mark.skipif("asan" in os.environ.get("LD_PRELOAD", ""), reason="memory is the sanitizer's")
def test_threads_ask_for_no_memory(tmp_path):
    """To throw takes memory: a thread that gets none ends the process. The caller raises."""
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
    """After an interrupted import, and after a reload."""
    result = run_command(sys.executable, "-c", IMPORTED_AGAIN, cwd=tmp_path)
    assert result.stdout == "interrupted\n3\n", result.stdout


def test_what_passed_once_excuses_nothing_else():
    """Arguments are checked once for each combination of what the check depends on."""
    call, given = operator("lstm", "cpu"), problem("lstm")
    call(**given, need_output=True, keep=False)
    changes = {
        "state": given["state"][:, :2],
        "bias": given["bias"].to(torch.float16),
        "weight": given["weight"][:, 1:],
        "x": given["x"][:, :2],
        "factors": given["factors"][1:],
        "shapes": [*given["shapes"][:-2], 1, 4],
        "counts": [1, 3, 2, 2],
        "is_complex": True,
        "activation": "tanh",
        "every": 0,
        "lengths": given["lengths"].double(),
    }
    for name, value in changes.items():
        with pytest.raises(ValueError, match=r"^kron_lstm: "):
            call(**{**given, name: value}, need_output=True, keep=False)
