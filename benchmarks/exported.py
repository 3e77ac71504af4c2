"""A checkpoint in every format of `kron-eval export` beside the model: its metrics; and of the C
its sizes, memory and time.

    python benchmarks/exported.py CHECKPOINT [--data DIR] [--examples N] [--rounds N]

Every format scores the first N examples of the test set with the task's own loss; an example of
char_lm is a window of the text, which begins in the state of the one before. The C is compiled with
-O2. A step is timed by turns with one of `model.stream()` and of `torch.nn.LSTMCell(128)` for the
same input, on the first example. With arm-none-eabi-gcc, sizes are told for a Cortex-M4 too.
"""

import argparse
import ctypes
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import onnxruntime
import torch
from tabulate import tabulate
from timing import interleave, machine
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from kron_plugin.export import exporter
from kron_plugin.export.c import export
from kron_plugin.restore import build, read_known
from kron_plugin.tasks.base import add_up
from kron_plugin.trained import Trained

HARNESS = """
static model_state state;
int state_bytes(void) { return sizeof state; }
void begin(void) { model_reset(&state); }
void run(const INPUT *x, int steps, int each, float *outputs)
{
    for (int t = 0; t < steps; t++, x += INPUT_SIZE) {
        model_step(&state, TAKEN, each || t == steps - 1 ? outputs : NULL);
        outputs += each ? MODEL_OUTPUTS : 0;
    }
}
"""
FORMS = {  # how HARNESS gives inputs
    True: ["-DINPUT=int", "-DINPUT_SIZE=1", "-DTAKEN=*x"],
    False: ["-DINPUT=float", "-DINPUT_SIZE=MODEL_INPUTS", "-DTAKEN=x"],
}
TARGETS = {"here": "gcc -O2", "Cortex-M4": "arm-none-eabi-gcc -O2 -mcpu=cortex-m4 -mthumb"
    " -mfloat-abi=hard -mfpu=fpv4-sp-d16"}  # fmt: skip


class InC:
    """A model in C, compiled in a folder and loaded."""

    def __init__(self, model: Trained, folder: Path) -> None:
        self.spec = model.task.spec
        self.source, _ = export(model, folder / "model.c")
        harness = folder / "harness.c"
        harness.write_text(f'#include "{self.source}"\n{HARNESS}')
        library = folder / "model.so"
        flags = ["-std=c99", "-O2", "-shared", "-fPIC", *FORMS[self.spec.tokens]]
        subprocess.run(["gcc", *flags, harness, "-lm", "-o", library], check=True)
        self.library = ctypes.CDLL(str(library))

    def begin(self) -> None:
        self.library.begin()

    def run(self, x: Tensor, each: bool) -> Tensor:  # shape: (T, …), to (T, outputs) or (outputs,)
        """Outputs for a sequence from the present state on, of each step or of the last."""
        x = (x.int() if self.spec.tokens else x.float()).contiguous()
        outputs = torch.empty(len(x) if each else 1, self.spec.output_size)
        pointers = (ctypes.c_void_p(t.data_ptr()) for t in (x, outputs))
        self.library.run(next(pointers), len(x), int(each), next(pointers))
        return outputs if each else outputs[0]


def samples(task: Any, examples: int, batch: int = 50) -> List[Dict[str, Any]]:
    """Batches of the first examples of the test set."""
    task.load_dataset("test")
    dataset = task.dataset("test")
    batch = 1 if is_stream(dataset[0]) else batch
    numbers = range(min(examples, len(dataset)))
    batches = [numbers[i : i + batch] for i in numbers[::batch]]
    return [dataset.collater([dataset[i] for i in each]) for each in batches]


def is_stream(sample: Dict[str, Any]) -> bool:
    """Whether a window goes on where the one before ended."""
    return "src_tokens" in sample.get("net_input", {})


def inputs(sample: Dict[str, Any]) -> Tuple[Tensor, Optional[Tensor]]:
    """The inputs (B, T, …) of a batch and their lengths."""
    given = sample["net_input"]
    return given["src_tokens" if is_stream(sample) else "source"], given.get("lengths")


def by_torch(model: Trained) -> Callable[[Dict[str, Any]], Tensor]:
    """What gives the outputs of batch after batch."""
    stream = None

    def outputs(sample: Dict[str, Any]) -> Tensor:
        nonlocal stream
        x, lengths = inputs(sample)
        if not is_stream(sample):
            return model(x, lengths)
        output, stream = model.cell.run(x.t(), None if sample["is_first"] else stream)
        return model.readout(output).transpose(0, 1)

    return outputs


def by_c(program: InC) -> Callable[[Dict[str, Any]], Tensor]:
    """The same in C, one sequence after the other."""

    def outputs(sample: Dict[str, Any]) -> Tensor:
        x, lengths = inputs(sample)
        found = []
        for i, sequence in enumerate(x):
            if not is_stream(sample) or sample["is_first"]:
                program.begin()
            sequence = sequence if lengths is None else sequence[: lengths[i]]
            found.append(program.run(sequence, program.spec.per_step))
        return pad_sequence(found, batch_first=True)

    return outputs


class InProgram:
    """A model as programs of torch or of ONNX, written into a folder and loaded."""

    def __init__(self, model: Trained, folder: Path, format: str) -> None:
        self.spec, self.model = model.task.spec, model
        paths = exporter(format)(model, folder / f"model.{SUFFIXES[format]}")
        self.whole, self.step = map(LOADERS[format], paths)

    def outputs(self, sample: Dict[str, Any]) -> Tensor:
        """Whole sequences at once; a stream step by step, because it carries its state."""
        x, _ = inputs(sample)
        if not is_stream(sample):
            return self.whole(x)[0]
        if sample["is_first"]:
            self.state = self.model.cell.stream(len(x)).state
            self.state = self.state if isinstance(self.state, tuple) else (self.state,)
        found = []
        for x_t in x.unbind(1):
            output, *self.state = self.step(x_t, *self.state)
            found.append(output)
        return torch.stack(found, 1)


def load_torch(path: Path) -> Callable[..., Sequence[Tensor]]:
    return torch.no_grad()(torch.export.load(path).module())


def load_onnx(path: Path) -> Callable[..., Sequence[Tensor]]:
    session = onnxruntime.InferenceSession(path)
    names = [given.name for given in session.get_inputs()]

    def call(*arguments: Tensor) -> Sequence[Tensor]:
        given = {n: a.contiguous().numpy() for n, a in zip(names, arguments, strict=True)}
        return [torch.from_numpy(found) for found in session.run(None, given)]

    return call


LOADERS = {"torch": load_torch, "onnx": load_onnx}
SUFFIXES = {"torch": "pt2", "onnx": "onnx"}


@torch.no_grad()
def scores(
    task: Any, batches: List[Dict[str, Any]], outputs: Callable[[Dict[str, Any]], Tensor]
) -> Dict[str, float]:
    """The task's metrics."""
    logs = []
    for sample in batches:
        output: Any = outputs(sample)
        output = (output, {"state": None}) if is_stream(sample) else output
        loss = task.compute_loss(output, sample)
        log = {"nsentences": sample["nsentences"], "sample_size": loss.count, **loss.sums}
        logs.append(log)
    return {metric.name: metric.value for metric in task.metrics(add_up(logs))}


def sizes(source: Path, compiler: str) -> Dict[str, int]:
    """Bytes of code and constants, and of the stack if every function called every other."""
    made = source.with_suffix(".o")
    command = [*compiler.split(), "-std=c99", "-fstack-usage", "-c", source, "-o", made]
    subprocess.run(command, check=True)
    tool = command[0].replace("gcc", "size")
    listed = subprocess.run([tool, "-A", made], check=True, capture_output=True, text=True).stdout
    found: Counter = Counter()
    for name, size in re.findall(r"^\.(text|rodata|data)\S*\s+(\d+)", listed, re.MULTILINE):
        found["code" if name == "text" else "constants"] += int(size)
    stacks = source.with_suffix(".su").read_text().splitlines()
    found["stack"] = sum(int(line.split("\t")[1]) for line in stacks)
    return dict(found)


@torch.no_grad()
def times(model: Trained, program: InC, x: Tensor, rounds: int) -> Dict[str, float]:
    """Microseconds of a step on one sequence."""
    spec = model.task.spec
    x = x[:1000]
    dense = F.one_hot(x, spec.input_size).float() if spec.tokens else x
    stream, cell = model.stream(), nn.LSTMCell(spec.input_size, 128)
    rows = {"stream": list(x), "LSTMCell(128)": list(dense.unsqueeze(1))}

    def streamed() -> None:
        stream.reset()
        for x_t in rows["stream"]:
            stream(x_t)

    def lstm() -> None:
        state = None
        for x_t in rows["LSTMCell(128)"]:
            state = cell(x_t, state)

    def in_c() -> None:
        program.begin()
        program.run(x, each=True)

    runs = {"C": in_c, "model.stream()": streamed, "LSTMCell(128)": lstm}
    return {name: 1e6 * s / len(x) for name, s in interleave(runs, rounds).items()}


def arguments(given: Optional[Sequence[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data", help="the folder of the data, if not where training found them")
    parser.add_argument("--examples", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=9, help="of the timing")
    return parser.parse_args(given)


def main(given: Optional[Sequence[str]] = None) -> None:
    args = arguments(given)
    torch.set_num_threads(1)
    made, _, task = build(args.checkpoint, read_known(args.checkpoint, of_ours=True), args.data)
    model = Trained(made.cell, made.readout, task).eval()
    with tempfile.TemporaryDirectory() as folder:
        program = InC(model, Path(folder))
        batches = samples(task, args.examples)
        ways = {"model": by_torch(model), "c": by_c(program)}
        for name in LOADERS:
            ways[name] = InProgram(model, Path(folder), name).outputs
        found = [scores(task, batches, way) for way in ways.values()]
        rows = [(name, *(f"{each[name]:.6g}" for each in found)) for name in found[0]]
        print(tabulate(rows, ["metric", *ways], disable_numparse=True))
        tables = {
            target: sizes(program.source, compiler)
            for target, compiler in TARGETS.items()
            if shutil.which(compiler.split()[0])
        }
        state = program.library.state_bytes()
        rows = [(target, *each.values(), state) for target, each in tables.items()]
        headers = ["bytes", *next(iter(tables.values())), "state"]
        print("\n" + tabulate(rows, headers))
        found = times(model, program, inputs(batches[0])[0][0], args.rounds)
        rows = [(name, f"{us:.1f}", f"{us / found['C']:.2f}") for name, us in found.items()]
        print("\n" + tabulate(rows, ["a step", "us", "to C"], disable_numparse=True))
        print(machine())


if __name__ == "__main__":
    main()
