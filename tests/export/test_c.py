"""Exported C files compute what the model does. stream.c runs them."""

import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from kron_plugin.export.c import export
from kron_plugin.models.baseline import BaselineCell
from kron_plugin.models.options import ModelSpec
from kron_plugin.modules import KRU, KRUGRU, KRULSTM, Readout
from kron_plugin.trained import Trained

from ..conftest import ROOT

STREAM = Path(__file__).with_name("stream.c")
STEPS = 20  # as in stream.c
STRICT = (
    "-std=c99 -Wall -Wextra -Werror -pedantic -Wconversion -Wshadow -Wcast-qual -Wdouble-promotion"
)
SANITIZED = "-fsanitize=address,undefined -fno-sanitize-recover=all"
COMPILERS = {  # a compiler with its flags, and what runs its programs
    "gcc": ("gcc -O2", ""),
    "clang": ("clang -O2", ""),
    "sanitized": (f"cc -O1 {SANITIZED}", ""),
    "cortex-m0": ("arm-none-eabi-gcc -Os -mcpu=cortex-m0", "qemu-arm"),
    "cortex-m4": (
        "arm-none-eabi-gcc -O2 -mcpu=cortex-m4 -mfloat-abi=hard -mfpu=fpv4-sp-d16",
        "qemu-arm",
    ),
}
BARE = ["-mthumb", "-ffreestanding", "-nostartfiles", "--specs=nosys.specs"]

MODELS = {  # layers, their options, what is read, and whether inputs are symbols
    "modrelu": (KRU, 16, {}, "parts", False),
    "modrelu of symbols": (KRU, 16, {}, "moduli", True),
    "modrelu, real": (KRU, 16, {"complex": False}, "parts", False),
    "identity": (KRU, 12, {"activation": "identity"}, "both", False),
    "identity, real, no bias": (
        *(KRU, 8, {"activation": "identity", "complex": False, "bias": False}),
        *("parts", True),
    ),
    "tanh": (KRU, 8, {"activation": "tanh", "complex": False}, "parts", True),
    "two layers": (KRU, 8, {"num_layers": 2}, "both", False),
    "three layers of symbols": (KRU, 6, {"num_layers": 3}, "moduli", True),
    "hard": (KRU, 12, {"unitary": "hard", "factors": "4,3"}, "moduli", False),
    "one factor": (KRU, 5, {}, "parts", False),
    "one unit": (KRU, 1, {}, "both", True),
    "rectangular": (KRU, 12, {"factors": "2x3,3x1,2x4", "num_layers": 2}, "parts", False),
    "rectangular, real": (KRU, 8, {"factors": "4x2,2x4", "complex": False}, "parts", False),
    "rectangular, growing": (KRU, 8, {"factors": "2x4,4x2"}, "parts", True),
    "lstm": (KRULSTM, 16, {}, "parts", False),
    "lstm, two layers": (KRULSTM, 12, {"num_layers": 2, "factors": "3x4,4x3"}, "parts", True),
    "gru": (KRUGRU, 16, {}, "parts", True),
    "gru, two layers": (KRUGRU, 6, {"num_layers": 2, "bias": False}, "parts", False),
}
ONE_OF_EACH_CELL = ("modrelu of symbols", "lstm", "gru, two layers", "tanh")


class Task(SimpleNamespace):
    title = "A test"

    def setting(self, options):
        return f"*/ {options} \\ /*"


def make(name, inputs=5, outputs=3):
    """A model with random parameters, of which some biases close modReLUs."""
    layers, size, options, reads, tokens = MODELS[name]
    cell = layers(inputs, size, backend="reference", **options)
    readout = Readout(cell.output_size, outputs, reads=reads)
    task = Task(spec=ModelSpec(inputs, outputs, tokens, True), cfg=SimpleNamespace(data="/a/b"))
    model = Trained(cell, readout, task).eval()
    for layer in cell.layers:
        for parameter in (layer.weight, layer.bias):
            if parameter is not None:
                torch.nn.init.normal_(parameter, std=0.5)
    return model


def sequence(model):
    spec = model.task.spec
    if spec.tokens:
        return torch.randint(spec.input_size, (STEPS,), dtype=torch.int32)
    x = torch.randn(STEPS, spec.input_size)
    return torch.where(x < -1, torch.zeros(()), x)


def compiled(model, folder, compiler="sanitized", name="tiny"):
    """The exported model as a program, and the words that run it."""
    command, runner = COMPILERS[compiler]
    command = command.split()
    for tool in (command[0], runner):
        if tool and shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    source, header = export(model, folder / f"{name}.c")
    assert header == source.with_suffix(".h")
    bare = BARE if runner else []
    symbols = ["-DSYMBOLS"] if model.task.spec.tokens else []
    build(*command, *bare, *STRICT.split(), "-c", source, "-o", folder / "model.o")
    build(
        *(*command, *bare, *symbols, "-I", folder, STREAM, folder / "model.o"),
        *("-lm", "-o", folder / "program"),
    )
    return [*([runner] if runner else []), folder / "program"]


def build(*command):
    result = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def outputs(program, x):
    """The size of a state, and the outputs of stream.c."""
    result = subprocess.run(program, input=x.numpy().tobytes(), capture_output=True)
    assert result.returncode == 0, result.stderr.decode()
    size, *_ = torch.frombuffer(bytearray(result.stdout[:4]), dtype=torch.int32).tolist()
    return size, torch.frombuffer(bytearray(result.stdout[4:]), dtype=torch.float32)


def check(model, program):
    """The outputs; again after a reset, of which the first half is not asked for; and, in turn with
    them, of a second state that reads backwards."""
    x, count = sequence(model), model.task.spec.output_size
    size, found = outputs(program, x)
    found = found.view(-1, count)
    with torch.no_grad():
        expected, backwards = model(x), model(x.flip(0))
    bound = 1e-5 * float(expected.abs().max())
    first, late = found[:STEPS], found[STEPS + STEPS // 2 :].view(-1, 2, count)
    torch.testing.assert_close(first, expected, rtol=0, atol=bound)
    assert torch.equal(late[:, 0], first[STEPS // 2 :])
    other = torch.cat([found[STEPS : STEPS + STEPS // 2], late[:, 1]])
    torch.testing.assert_close(other, backwards, rtol=0, atol=bound)
    return size


@pytest.mark.parametrize("name", MODELS)
def test_computes_what_the_model_does(name, tmp_path):
    model = make(name)
    check(model, compiled(model, tmp_path))


@pytest.mark.parametrize("compiler", [name for name in COMPILERS if name != "sanitized"])
@pytest.mark.parametrize("name", ONE_OF_EACH_CELL)
def test_any_compiler_and_machine(name, compiler, tmp_path):
    model = make(name)
    check(model, compiled(model, tmp_path, compiler))


def test_a_wrong_number_is_seen(tmp_path):
    model = make("modrelu")
    program = compiled(model, tmp_path)
    with torch.no_grad():
        model.cell.layers[0].factors[0][0, 0] += 0.01
    with pytest.raises(AssertionError, match="not close"):
        check(model, program)


@pytest.mark.parametrize("name", [*ONE_OF_EACH_CELL, "two layers", "rectangular, growing"])
def test_the_comment_tells_true_sizes(name, tmp_path):
    model = make(name)
    program = compiled(model, tmp_path, "gcc")
    header = (tmp_path / "tiny.h").read_text()
    told = {word: int(n) for word, n in re.findall(r"^   (\w+) +(\d+)", header, re.MULTILINE)}
    assert told["parameters"] == sum(p.numel() for p in model.parameters())
    assert f"of these {model.cell.recurrent_parameters()} in the factors" in header
    assert told["state"] == check(model, program)
    assert told["constants"] == table_bytes(tmp_path / "tiny.c")
    assert header.startswith("/* A test: __ __data_: _b__ _ __\n"), "what would end the comment"


def test_the_stack_is_small(tmp_path):
    model = make("lstm, two layers")
    source, _ = export(model, tmp_path / "tiny.c")
    build("cc", "-std=c99", "-O2", "-fstack-usage", "-c", source, "-o", tmp_path / "tiny.o")
    frames = re.findall(r"\t(\d+)\tstatic", (tmp_path / "tiny.su").read_text())
    assert 0 < sum(map(int, frames)) < 400, "all functions together"


def table_bytes(source):
    """The bytes of the tables in an object file, without those of pointers."""
    object_file = source.with_suffix(".o")
    build("cc", "-std=c99", "-O0", "-c", source, "-o", object_file)
    listed = subprocess.run(["nm", "-S", object_file], capture_output=True, text=True).stdout
    tables = re.findall(
        r"^\w+ (\w+) r ((?:weight|factors|bias|start|readout)_\w+|rows|columns)$", listed, re.M
    )
    assert len(tables) >= 5
    return sum(int(size, 16) for size, _ in tables)


@pytest.mark.parametrize("name", ["modrelu", "modrelu of symbols"])
def test_the_header_serves_cpp(name, tmp_path):
    compiled(make(name), tmp_path)
    main = tmp_path / "main.cpp"
    main.write_text('#include "tiny.h"\nint main() { static tiny_state s; tiny_reset(&s); }\n')
    flags = ["-Wall", "-Werror", *SANITIZED.split()]
    build("c++", *flags, main, tmp_path / "model.o", "-o", tmp_path / "cpp")


def test_the_example_of_the_readme(tmp_path):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    ((include, body),) = re.findall(r"```c\n(.*)\n((?:.*\n)*?)```", readme)
    export(make("modrelu", inputs=1, outputs=10), tmp_path / "digits.c")
    main = tmp_path / "main.c"
    main.write_text(f"{include}\nvoid classify(const float *pixels)\n{{\n{body}}}\n")
    build("cc", *STRICT.split(), "-c", main, "-o", tmp_path / "main.o")


def test_the_same_model_gives_the_same_files(tmp_path):
    model = make("lstm")
    first, again = (export(model, tmp_path / folder / "a.c") for folder in ("", "."))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.c", "a.h"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_become_float(dtype, tmp_path):
    model = make("modrelu").to(dtype)
    program = compiled(model, tmp_path)
    check(model.float(), program)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("model", "must end in .c"),
        ("model.h", "must end in .c"),
        ("my-model.c", "'my-model', so it must be a letter"),
        ("2nd.c", "'2nd', so it must be a letter"),
        ("_x.c", "'_x', so it must be a letter"),
        ("größe.c", "'größe', so it must be a letter"),
        ("math.c", "would hide C's own math.h"),
    ],
)
def test_names_that_c_does_not_take(name, words, tmp_path):
    with pytest.raises(ValueError, match=re.escape(words)):
        export(make("modrelu"), tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_both_files_are_written_or_neither(tmp_path):
    (tmp_path / "model.h").mkdir()
    with pytest.raises(OSError, match=re.escape("model.h")):
        export(make("modrelu"), tmp_path / "model.c")
    assert [path.name for path in tmp_path.iterdir()] == ["model.h"]


def bidirectional(model):
    cell = KRU(5, 4, bidirectional=True)
    return Trained(cell, Readout(cell.output_size, 3, directions=2), model.task)


def dense(model):
    return Trained(BaselineCell("lstm", 5, 4), Readout(4, 3), model.task)


def infinite(model):
    model.cell.layers[0].weight.data[0, 0] = float("inf")
    return model


def halves(model):
    cell = KRU(5, 4, complex=False)
    return Trained(cell, Readout(4, 3, reads="moduli"), model.task)


def unknown(model):
    model.cell.layers[0].activation = "softsign"
    return model


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (bidirectional, "its layers are bidirectional"),
        (dense, "its cell is torch's own"),
        (infinite, "the model holds a NaN, an infinity"),
        (halves, "the readout reads moduli of real units"),
        (unknown, "pieces.c has no 'softsign complex'"),
    ],
)
def test_models_that_cannot_be_c(change, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        export(change(make("modrelu")), tmp_path / "tiny.c")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["read", "layer", "multiply", "step", "name", "NAME", "int", "X"])
def test_no_name_is_taken_by_what_is_inside(name, tmp_path):
    compile_alone = ["cc", *STRICT.split(), "-c"]
    for model in map(make, ("modrelu of symbols", "lstm")):
        source, _ = export(model, tmp_path / f"{name}.c")
        build(*compile_alone, source, "-o", tmp_path / "model.o")
