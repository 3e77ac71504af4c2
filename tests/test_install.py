"""The three ways in which the plugin is found, each from a folder that is not the checkout."""

import shutil
import sys
from pathlib import Path

import pytest

from .conftest import ROOT, run

TRAIN = (
    *("--task", "copy_memory", "--delay", "5", "--train-examples", "8", "--eval-examples", "4"),
    *("--arch", "kru", "--hidden-size", "8", "--criterion", "soft_unitary"),
    *("--optimizer", "kron_adam", "--lr", "1e-3", "--batch-size", "4", "--max-epoch", "1"),
    *("--cpu", "--num-workers", "0", "--save-dir", "out"),
)
# Tests that read sources of kernels, recipes, results and models.
TESTS = (
    "tests/test_recipes.py::test_every_task_has_a_recipe_with_every_profile",
    "tests/test_recipes.py::test_records_are_of_recipes_in_the_ledger",
    "tests/test_models.py",
    "tests/ops/test_kron_cpu.py::test_the_backend_is_here",
    "tests/ops/test_recurrence_cpu.py::test_any_number_of_threads",
)

# This runs in fairseq after it has imported --user-dir, and checks where modules come from.
PROBE = """
import importlib.util, runpy, sys
sys.argv[0] = "fairseq-train"
runpy.run_module("fairseq_cli.train", run_name="__main__")
import kron_plugin, kron_plugin.tasks.copy_memory
from fairseq.models import MODEL_REGISTRY
from fairseq.optim import OPTIMIZER_REGISTRY
from fairseq.tasks import TASK_REGISTRY
assert "kru" in MODEL_REGISTRY and {"copy_memory", "music"} <= set(TASK_REGISTRY)
assert {"kron_adam", "kron_rmsprop"} <= set(OPTIMIZER_REGISTRY)
for name in ("cuda", "tasks"):
    spec = importlib.util.find_spec(name)
    places = spec.submodule_search_locations if spec else []
    assert not any("@HOME@" in p and "site-packages" not in p for p in places), spec
from kron_plugin.ops import available_backends
from kron_plugin.ops.cuda_kernels import FOLDER
assert available_backends()[0] == "cpu", "the kernel's sources are missing"
found = {path.name for path in [*FOLDER.iterdir(), *FOLDER.glob("cells/*")]}
assert {"butterfly.cu", "stages.cu", "step.cuh", "gru.cuh"} <= found
from kron_plugin.export.c import INTERFACE, PIECES
assert INTERFACE.is_file() and PIECES.is_file()
print("FOUND", kron_plugin.__file__)
"""


def probe(user_dir, home, cwd, env=None):
    """Train a moment with this --user-dir; return where kron_plugin came from."""
    code = PROBE.replace("@HOME@", str(home))
    command = (sys.executable, "-c", code, *TRAIN, "--user-dir", user_dir)
    result = run(*command, cwd=cwd, env=env)
    assert result.returncode == 0, result.stdout[-3000:]
    return Path(result.stdout.split("FOUND ")[-1].strip())


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the files that a git clone would have."""
    if not (ROOT / ".git").exists():
        pytest.skip("needs a git checkout to copy")
    copy = tmp_path_factory.mktemp("a checkout") / "kron"
    files = run("git", "ls-files", "-co", "--exclude-standard", cwd=ROOT).stdout.splitlines()
    for name in files:
        if (ROOT / name).exists():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name, follow_symlinks=False)
    return copy


def test_bare_checkout(checkout, tmp_path):
    found = probe(checkout / "kron_plugin", checkout, tmp_path)
    assert found == checkout / "kron_plugin" / "__init__.py"


def test_editable_install(tmp_path):
    result = run(
        sys.executable, "-c", "import kron_plugin; print(kron_plugin.__file__)", cwd=tmp_path
    )
    package = Path(result.stdout.strip()).parent
    if package != ROOT / "kron_plugin":
        pytest.skip("not installed with pip install -e")
    assert probe(package, ROOT, tmp_path) == package / "__init__.py"
    for name in ("cuda", "tasks"):
        result = run(sys.executable, "-c", f"import {name}; print({name}.__path__)", cwd=tmp_path)
        assert "site-packages" in result.stdout or str(ROOT) not in result.stdout


def test_wheel_in_another_place(checkout, tmp_path):
    """The wheel comes from a source distribution; `make installed-test` runs all tests on one."""
    folder = tmp_path / "a folder"
    command = ("bash", checkout / "tests" / "installed.sh", folder, sys.executable)
    tested = run(*command, *TESTS, cwd=tmp_path)
    assert tested.returncode == 0, tested.stdout
    assert "passed" in tested.stdout
    site = folder / "site"
    assert {p.name for p in site.iterdir() if p.suffix != ".dist-info"} <= {"kron_plugin", "bin"}
    assert (site / "kron_plugin" / "py.typed").is_file()
    env = {"PYTHONPATH": str(site)}
    found = probe(site / "kron_plugin", site, tmp_path, env)
    assert found == site / "kron_plugin" / "__init__.py"
    result = run(sys.executable, "-c", "import tasks", cwd=tmp_path, env=env)
    assert "ModuleNotFoundError" in result.stdout


# All requirements of setup.py except torch and numpy.
ABSENT = [
    *("fairseq", "omegaconf", "hydra", "sentencepiece", "matplotlib", "mido", "pretty_midi"),
    *("tabulate", "tqdm", "cupy"),
]
# Modules that Python has on Linux and macOS, but not on Windows.
UNIX = ["fcntl", "grp", "pwd", "resource"]
BLOCKED = """
import sys
sys.modules.update(dict.fromkeys({absent}))
from kron_plugin.modules import KRU, KRULSTM
import torch
for layer in (KRU(1, 4, backend="{backend}"), KRULSTM(1, 4, backend="{backend}")):
    layer(torch.zeros(2, 1, 1))[0].sum().backward()
assert not sys.modules.get("fairseq")
"""


@pytest.mark.parametrize(
    ("absent", "backend"), [([], "auto"), (ABSENT, "auto"), (UNIX, "reference")]
)
def test_the_layers_need_torch_and_numpy_and_leave_fairseq_alone(absent, backend, tmp_path):
    code = BLOCKED.format(absent=absent, backend=backend)
    result = run(sys.executable, "-c", code, cwd=tmp_path)
    assert result.returncode == 0, result.stdout
