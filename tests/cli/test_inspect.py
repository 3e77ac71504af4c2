"""The gradients of `inspect` are those of autograd, and the command draws them."""

import re

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import kron_plugin

kron_plugin.register()

from kron_plugin.checkpoints import load  # noqa: E402
from kron_plugin.cli.gradients import follow  # noqa: E402
from kron_plugin.cli.main import main  # noqa: E402
from kron_plugin.models.kru import KRUModel  # noqa: E402
from kron_plugin.models.options import KRUConfig  # noqa: E402
from kron_plugin.tasks.adding import AddingConfig, AddingTask  # noqa: E402
from kron_plugin.tasks.copy_memory import CopyMemoryConfig, CopyMemoryTask  # noqa: E402
from kron_plugin.tasks.music import MusicConfig, MusicTask  # noqa: E402

from .test_damaged_files import STATE  # noqa: E402

TRAIN = (
    *("--task", "copy_memory", "--delay", 4, "--copy-length", 2, "--train-examples", 8),
    *("--arch", "kru", "--hidden-size", 8, "--criterion", "soft_unitary"),
    *("--optimizer", "kron_adam", "--lr", "1e-30", "--batch-size", 4, "--max-update", 2),
)

pytestmark = pytest.mark.xdist_group("inspect")  # its fixtures are made once


def made(task, **options):
    """A model of a task, as `inspect` runs it."""
    return KRUModel.build_model(KRUConfig(hidden_size=4, **options), task).eval().double()


def batch(task, count):
    task.load_dataset("valid")
    dataset = task.dataset("valid")
    return dataset.collater([dataset[i] for i in range(count)])


def norms(model, source, loss_of):
    """‖∂L/∂(h_t, c_t)‖ of the last layer: for each t the later steps in one call."""
    found = []
    for t in range(source.shape[1]):
        x = source.transpose(0, 1)
        before, state = model.cell.run(x[: t + 1])
        state = tuple(part.detach().requires_grad_() for part in state)
        output = torch.cat([before[:t].detach(), state[0][-1:]])
        if t + 1 < len(x):
            output = torch.cat([output, model.cell.run(x[t + 1 :], state)[0]])
        read = (
            model.readout(output).transpose(0, 1) if model.per_step else model.readout(output[-1])
        )
        gradients = torch.autograd.grad(loss_of(read), state, allow_unused=True)
        parts = [g[-1].square().sum(-1) for g in gradients if g is not None]
        found.append(torch.stack(parts).sum(0).sqrt())
    return torch.stack(found).numpy()


@pytest.mark.parametrize(
    "options",
    [
        {"cell": "kru"},
        {"cell": "kru", "num_layers": 2, "readout": "both"},
        {"cell": "kru_lstm", "unitary": None},
        {"cell": "kru_gru"},
        {"cell": "lstm", "num_layers": 2},
        {"cell": "rnn"},
    ],
)
def test_gradients_are_those_of_the_rest_of_the_sequence(options):
    task = CopyMemoryTask(CopyMemoryConfig(delay=3, copy_length=2))
    model, sample = made(task, **options), batch(task, 3)
    source, target = sample["net_input"]["source"], sample["target"]
    followed = follow(model.requires_grad_(False), task, sample, 100)
    whole = norms(model, source, lambda o: F.cross_entropy(o.flatten(0, 1), target.flatten()))
    last = norms(
        model, source, lambda o: F.cross_entropy(o[:, -1], target[:, -1]) / target.shape[1]
    )
    states = model.cell.run(source.transpose(0, 1))[0].numpy()
    recent = follow(model, task, sample, 4)
    for b, (all_steps, four) in enumerate(zip(followed, recent, strict=True)):
        np.testing.assert_allclose(all_steps.whole, whole[:, b], rtol=1e-5)
        np.testing.assert_allclose(all_steps.last, last[:, b], rtol=1e-5)
        np.testing.assert_allclose(all_steps.states, states[:, b])
        for few, every in zip(four, all_steps, strict=True):
            np.testing.assert_allclose(few, every[-4:])


def test_one_answer_has_one_gradient():
    task = AddingTask(AddingConfig(steps=6))
    model, sample = made(task), batch(task, 2)
    expected = norms(
        model, sample["net_input"]["source"].double(), lambda o: F.mse_loss(o, sample["target"])
    )
    followed = follow(model.requires_grad_(False), task, sample, 100)
    for b, one in enumerate(followed):
        np.testing.assert_allclose(one.last, expected[:, b], rtol=1e-5)
        np.testing.assert_array_equal(one.last, one.whole)
    sample["target"] = model(sample["net_input"]["source"].double()).float()
    with pytest.raises(ValueError, match="has no gradient"):
        follow(model, task, sample, 100)


def test_each_example_ends_where_its_loss_does(rolls_pickle):
    task = MusicTask(MusicConfig(data=str(rolls_pickle.parent)))
    task.rolls["valid"][1] = task.rolls["valid"][1][:9]
    model, sample = made(task).requires_grad_(False), batch(task, 2)
    dataset = task.dataset("valid")
    long, short = follow(model, task, sample, 10)
    assert (len(long.last), len(short.last)) == (10, 4)
    (alone,) = follow(model, task, dataset.collater([dataset[1]]), 4)
    np.testing.assert_allclose(short.states, alone.states)
    np.testing.assert_allclose(short.last / short.last[-1], alone.last / alone.last[-1], rtol=1e-5)


@pytest.fixture(scope="module")
def runs(train_on, tmp_path_factory):
    """Checkpoints: `kru` was trained but has not learned; the others are made from it."""
    folder = tmp_path_factory.mktemp("inspected")
    trained = train_on(folder / "run", *TRAIN) / "checkpoint_last.pt"
    (folder / "kru.pt").write_bytes(trained.read_bytes())
    task = CopyMemoryTask(CopyMemoryConfig(delay=4, copy_length=2))

    def other(name, of_task=None, **options):
        state = load(trained)
        state["cfg"]["model"].update(options)
        state["cfg"]["task"].update(of_task or {})
        model = KRUModel.build_model(KRUConfig(hidden_size=8, **options), task) if options else None
        state["model"] = model.state_dict() if model else state["model"]
        torch.save(state, folder / f"{name}.pt")

    other("lstm", cell="lstm")
    other("rectangular", kron_factors="2x4,4x2")
    other("short", {"delay": 3})
    other("dataless", {"_name": "music", "data": "/absent"})
    state = load(trained)
    state["cfg"]["model"]["bidirectional"] = True
    torch.save(state, folder / "bidirectional.pt")
    theirs = {"model": {"_name": "kru_lm"}, "task": {"_name": "language_modeling"}}
    torch.save({**STATE, "cfg": theirs}, folder / "fairseqs.pt")
    return folder


@pytest.fixture
def inspect(runs, tmp_path, monkeypatch, capsys):
    """Run `kron-eval inspect` in an empty folder; its exit code and both outputs."""
    monkeypatch.chdir(tmp_path)

    def call(*args):
        code = main(["inspect", *(str(runs / a) if a.endswith(".pt") else a for a in args)])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


def test_a_page_and_tables(inspect, tmp_path):
    code, told, error = inspect("kru.pt", "--beside", "lstm.pt", "--examples", "3")
    assert (code, error) == (0, "wrote inspect.png\n"), told
    assert (tmp_path / "inspect.png").read_bytes().startswith(b"\x89PNG")
    assert told.startswith("KRU(8): copy memory, T = 4\ninspected0/kru.pt\n2 updates; 3 examples")
    assert re.search(r"^eigenvalues \|λ\|, largest +1$", told, re.MULTILINE)
    (line,) = re.findall(r"^7 steps before +(.*)$", told, re.MULTILINE)
    trained, untrained, lstm = map(float, line.split())
    assert trained == untrained  # it has not learned, and is built as it was
    assert lstm < 0.1 < trained
    models = r"KRU\(8\), trained +KRU\(8\), untrained +LSTM\(8\), trained"
    assert re.search(rf"^gradient, of that at the end +{models}$", told, re.MULTILINE)


def test_cells_with_gates_have_a_matrix_for_each(inspect, tmp_path):
    (tmp_path / "folder").mkdir()
    code, told, error = inspect("lstm.pt", "--output", "folder", "--steps", "3")
    assert (code, error) == (0, "wrote folder/inspect.png\n"), told
    assert re.search(r"^ +W_i +W_f +W_g +W_o$", told, re.MULTILINE)
    assert "\n2 steps before " in told
    assert "also the gates decide" in told


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("rectangular.pt", "cannot be inspected: factors='2x4,4x2': rectangular ones have no"),
        ("bidirectional.pt", "bidirectional.pt: is bidirectional, and cannot be followed by"),
        ("kru.pt --beside short.pt", "was trained for 'copy memory, T = 3', not for 'copy memory"),
        ("kru.pt --beside bidirectional.pt", "bidirectional.pt: is bidirectional, and"),
        ("fairseqs.pt", "its task is 'language_modeling', no subclass of"),
        ("dataless.pt", "was trained on /absent, which is not here; --data names another folder"),
        ("kru.pt --data .", "--data .: the task copy_memory reads no data"),
        ("kru.pt --beside absent.pt", "absent.pt: no such checkpoint"),
        ("kru.pt --output absent", "--output absent/inspect.png: there is no folder absent"),
        ("kru.pt --examples 0", "--examples=0: must be at least 1"),
        ("kru.pt --steps 1", "--steps=1: must be at least 2"),
    ],
)
def test_what_cannot_be_inspected_is_one_line(inspect, tmp_path, args, message):
    code, told, error = inspect(*args.split())
    assert (code, told) == (2, ""), error
    (line,) = error.splitlines()
    assert message in line
    assert list(tmp_path.iterdir()) == []
