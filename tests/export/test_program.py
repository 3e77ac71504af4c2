"""Programs of torch.export: equal to the model in a process that cannot import this package."""

import subprocess
import sys

import pytest
import torch

from kron_plugin.export import exporter, files, forms

from ..conftest import ROOT
from .cases import EXPORTED, assert_close, inputs, model_of

pytestmark = pytest.mark.xdist_group("program")  # its fixtures are made once

# It loads the programs NAME.pt2 and NAME_step.pt2 of a folder and runs them on NAME.inputs.
ELSEWHERE = """
import pathlib, sys
sys.modules["kron_plugin"] = sys.modules["fairseq"] = None  # they cannot be imported
import torch

def load(path):
    program = torch.export.load(path)
    graphs = [m.graph for m in program.graph_module.modules() if hasattr(m, "graph")]
    called = [node.target for g in graphs for node in g.nodes if node.op == "call_function"]
    used = {getattr(target, "namespace", target.__module__) for target in called}
    assert used <= {"aten", "higher_order", "_operator", "torch._ops"}, used
    assert sum("scan" in str(target) for target in called) == ("_step" not in path.name)
    return program.module()

for path in pathlib.Path(sys.argv[1]).glob("*.inputs"):
    whole, step = load(path.with_suffix(".pt2")), load(path.with_name(path.stem + "_step.pt2"))
    results = []
    for x in torch.load(path):
        state = [b.repeat(1, len(x), 1) for n, b in step.named_buffers() if n.startswith("initial")]
        outputs = []
        for x_t in x.unbind(1):
            output, *state = step(x_t, *state)
            outputs.append(output)
        results.append((whole(x), (torch.stack(outputs, 1), *state)))
    torch.save(results, path.with_suffix(".results"))
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """For each case the model, the inputs, and what the programs make of them elsewhere."""
    folder, elsewhere = tmp_path_factory.mktemp("programs"), tmp_path_factory.mktemp("elsewhere")
    made = {}
    for name, case in EXPORTED.items():
        model = model_of(*case)
        files = exporter("torch")(model, folder / f"{name}.pt2")
        assert files == [folder / f"{name}.pt2", folder / f"{name}_step.pt2"]
        for file in files:
            assert str(ROOT).encode() not in file.read_bytes()
        made[name] = model, [inputs(model, *shape) for shape in ((1, 1), (3, 9), (2, 30))]
        torch.save(made[name][1], folder / f"{name}.inputs")
    command = [sys.executable, "-I", "-c", ELSEWHERE, folder]
    subprocess.run(command, cwd=elsewhere, check=True, timeout=300)
    return {name: (*row, torch.load(folder / f"{name}.results")) for name, row in made.items()}


@pytest.mark.parametrize("name", EXPORTED)
def test_whole_sequences_of_any_size(results, name):
    model, given, found = results[name]
    for x, ((output, *last), _) in zip(given, found, strict=True):
        assert_close(output, model(x))
        expected = model.cell.run(x.transpose(0, 1))[1]
        for part, of_model in zip(last, expected, strict=True):
            assert_close(part, of_model)


@pytest.mark.parametrize("name", EXPORTED)
def test_steps_are_the_whole(results, name):
    model, _, found = results[name]
    for (output, *last), (outputs, *state) in found:
        assert_close(outputs if model.task.spec.per_step else outputs[:, -1], output)
        for part, of_whole in zip(state, last, strict=True):
            assert_close(part, of_whole)


def test_nothing_is_left_half_written(tmp_path, monkeypatch):
    def content(form):
        if isinstance(form, forms.Step):
            raise KeyboardInterrupt
        return b"whole"

    (tmp_path / "model.pt2").write_bytes(b"older")
    with pytest.raises(KeyboardInterrupt):
        forms.write(model_of("lstm"), files("torch", tmp_path / "model.pt2"), content)
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt2"]
    assert (tmp_path / "model.pt2").read_bytes() == b"older"


@pytest.mark.filterwarnings("ignore")  # torch.jit is deprecated
def test_models_can_be_traced_and_say_that_they_cannot_be_scripted():
    model = model_of("modrelu", tokens=True)
    traced = torch.jit.trace(model, (inputs(model, 2, 5),))
    for shape in ((3, 9), (1, 1)):
        x = inputs(model, *shape)
        assert_close(traced(x), model(x))
    with pytest.raises(NotImplementedError, match=r"cannot read KRU; torch.export can"):
        torch.jit.script(model)
