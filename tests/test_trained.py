"""`kron_plugin.load`: what `fairseq-train` wrote, in use without its data."""

import copy
import json
import pickle
import shutil

import numpy as np
import pytest
import torch

import kron_plugin
from kron_plugin.cli.evaluate import evaluate
from kron_plugin.cli.main import main
from kron_plugin.restore import read_known, weights_alone
from kron_plugin.trained import load

from .conftest import PACKAGE

pytestmark = pytest.mark.xdist_group("trained")  # its fixtures are made once

SONGS = [[(40 + i + t % 12, 44 + i + t % 12) for t in range(12)] for i in range(6)]
TEXT = "abc abd abe\n"
OPTIONS = {  # the architecture and the options of each task
    "copy_memory": ("kru", "--delay", 6, "--copy-length", 3),
    "adding": ("kru", "--steps", 10, "--cell", "lstm"),
    "pixel_mnist": ("kru", "--permute", "--unverified", "--valid-images", 8, "--readout", "both"),
    "char_lm": ("kru_lm", "--cell", "kru_gru", "--tokens-per-sample", 10),
    "music": ("kru", "--cell", "kru_lstm", "--num-layers", 2),
}
EXAMPLES = {  # the form of an input
    "copy_memory": ([1, 8, 3], (12,), torch.int64),
    "adding": (([0.25] * 10, [0] * 8 + [1, 1]), (10, 2), torch.float32),
    "pixel_mnist": (np.full((4, 3), 51, np.uint8), (12, 1), torch.float32),
    "char_lm": ("abd", (3,), torch.int64),
    "music": (np.eye(5, 88), (5, 88), torch.float32),
}


@pytest.fixture(scope="module", params=OPTIONS)
def trained(request, train_on, tmp_path_factory):
    """A task's name, its checkpoint, its weights alone, the scores of both; the data are gone."""
    folder = tmp_path_factory.mktemp(request.param)
    data = folder / "data"
    data.mkdir()
    write_data(request.param, data)
    reads = request.param not in ("copy_memory", "adding")
    arch, *options = OPTIONS[request.param]
    out = train_on(
        folder / "run",
        *([data] if reads else []),
        *("--task", request.param, "--arch", arch, "--hidden-size", 8, *options),
        *("--criterion", "soft_unitary", "--optimizer", "kron_adam", "--lr", "1e-2"),
        *("--batch-size", 4, "--max-update", 3),
    )
    checkpoint = out / "checkpoint_best.pt"
    weights = folder / "weights.pt"
    torch.save(weights_alone(read_known(checkpoint)), weights)
    scores = [
        evaluate(path, read_known(path), str(data) if reads else None)
        for path in (checkpoint, weights)
    ]
    shutil.rmtree(data)
    return request.param, checkpoint, weights, scores


def write_data(task, folder):
    if task == "char_lm":
        for split in ("train", "valid", "test"):
            (folder / f"{split}.txt").write_text(TEXT * 20)
    if task == "music":
        songs = pickle.dumps(dict.fromkeys(("train", "valid", "test"), SONGS))
        (folder / "songs.pickle").write_bytes(songs)
    if task == "pixel_mnist":
        for name, count in (("train", 24), ("t10k", 8)):
            images = np.arange(count * 12).reshape(count, 4, 3)
            (folder / f"{name}-images-idx3-ubyte").write_bytes(idx(images))
            (folder / f"{name}-labels-idx1-ubyte").write_bytes(idx(np.arange(count) % 10))


def idx(array):
    sizes = b"".join(int(n).to_bytes(4, "big") for n in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes()


def test_it_needs_no_data_and_reads_examples(trained):
    task, checkpoint, *_ = trained
    model = kron_plugin.load(str(checkpoint))
    assert not model.training
    example, shape, dtype = EXAMPLES[task]
    source = model.encode(example)
    assert (source.shape, source.dtype) == (shape, dtype)
    output = model(source)
    assert torch.allclose(model(torch.stack([source, source]))[1], output, atol=1e-6)
    said = model.decode(output)
    if task == "pixel_mnist":
        assert sorted(source.flatten().tolist()) == pytest.approx([0.2] * 12)
        assert model.encode(np.full((4, 3), 0.2)).tolist() == source.tolist()
        image = np.arange(12).reshape(4, 3)
        order = np.random.RandomState(92916).permutation(12)
        assert (255 * model.encode(image)).flatten().tolist() == pytest.approx(order.tolist())
    if task == "music":
        assert (np.shape(said), said.dtype) == ((5, 88), bool)
    kinds = {"copy_memory": list, "adding": float, "pixel_mnist": int, "char_lm": str}
    assert isinstance(said, kinds.get(task, np.ndarray))
    if isinstance(said, (str, list)):
        assert len(said) == 3


def test_a_stream_gives_the_outputs_of_the_whole_sequence(trained):
    task, checkpoint, *_ = trained
    model = load(checkpoint)
    source = model.encode(EXAMPLES[task][0])
    whole = model(source).detach()
    stream = model.stream()
    outputs = [stream(x) for x in source]
    last = torch.stack(outputs) if model.task.spec.per_step else outputs[-1]
    assert torch.allclose(last, whole, rtol=0, atol=1e-5 * float(whole.abs().max()))
    fork = stream.fork()
    assert torch.equal(stream(source[0]), fork(source[0]))
    fork(source[1])
    stream.state, expected = fork.state, fork(source[2])
    assert torch.equal(stream(source[2]), expected)
    stream.reset()
    assert torch.equal(copy.copy(stream)(source[0]), outputs[0])
    assert torch.equal(stream(source[0]), outputs[0])
    pair = model.stream(batch_size=2)
    rows = pair(torch.stack([source[0], source[0]]))
    assert torch.allclose(rows, outputs[0].expand(2, -1), atol=1e-6)
    stream.reset()
    with torch.no_grad():
        model.readout.weight.zero_()
    assert torch.equal(stream(source[0]), outputs[0]), "the stream does not follow the model"


def test_the_weights_alone_are_the_same_model(trained):
    task, checkpoint, weights, scores = trained
    assert scores[0].pop("checkpoint") != scores[1].pop("checkpoint")
    assert scores[0] == scores[1]
    assert weights.stat().st_size < checkpoint.stat().st_size / 2
    folder = str(checkpoint.parent.parent).encode()
    assert folder in checkpoint.read_bytes()
    assert folder not in weights.read_bytes(), "the machine's folders"
    source = EXAMPLES[task][0]
    both = [load(path) for path in (checkpoint, weights)]
    assert torch.equal(*(model(model.encode(source)) for model in both))


def test_a_model_is_found_by_its_name(trained, monkeypatch, capsys):
    task, _, weights, scores = trained
    if task != "copy_memory":
        pytest.skip("one task is enough")
    monkeypatch.setattr("kron_plugin.published.published", lambda name: weights)
    assert main(["memory_of_mine", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["metrics"] == scores[0]["metrics"]
    assert load("memory_of_mine").task.spec.tokens
    monkeypatch.setattr("kron_plugin.published.published", lambda name: weights / "absent")
    assert main(["memory_of_mine"]) == 2
    assert "no command 'memory_of_mine' and no such file" in capsys.readouterr().err


def test_it_can_be_copied_and_pickled(trained):
    task, checkpoint, *_ = trained
    model = load(checkpoint)
    example = EXAMPLES[task][0]
    output = model(model.encode(example))
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(other.encode(example)), output)


def test_other_loads_of_the_program_are_as_before(trained, tmp_path, monkeypatch):
    monkeypatch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", raising=False)
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # refused all the same
    torch.save({"function": print}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="could run code"):
        load(tmp_path / "other.pt")
    load(trained[1])
    assert torch.load(tmp_path / "other.pt", weights_only=False)["function"] is print


def test_wrong_examples_are_named(trained):
    task, checkpoint, *_ = trained
    model = load(checkpoint)
    wrong = {
        "copy_memory": ([1, 9, 3], "expected 3 symbols from 1 to 8, not"),
        "char_lm": ("Zoë", "has characters that the training text has not: 'Z', 'o', 'ë'"),
        "music": (np.eye(5), r"a piano roll has shape \(T, 88\), not \(5, 5\)"),
        "adding": (([0.5] * 3, [1, 0]), "as many markers"),
        "pixel_mnist": (np.zeros((2, 2, 2)), r"an image has shape"),
    }
    numbers = {  # of the right shape
        "copy_memory": ([1, 1.5, 3], "expected 3 symbols"),
        "music": (np.full((5, 88), 100), "holds 0 and 1 alone"),
        "pixel_mnist": (np.full((4, 3), 51.0), "floats from 0 to 1"),
    }
    for examples in (wrong, numbers):
        if task in examples:
            example, message = examples[task]
            with pytest.raises(ValueError, match=message):
                model.encode(example)
    if task == "pixel_mnist":
        model.task.cfg.unverified = False
        with pytest.raises(ValueError, match="has 784 pixels, not 12"):
            model.encode(np.zeros((4, 3)))


def test_what_is_no_checkpoint_of_ours_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"absent\.pt: no such checkpoint"):
        load(tmp_path / "absent.pt")
    other = tmp_path / "other.pt"
    torch.save({"weights": torch.zeros(2)}, other)
    with pytest.raises(ValueError, match="not a checkpoint of fairseq-train"):
        load(other)


def test_the_public_names():
    for name in kron_plugin.__all__:
        assert getattr(kron_plugin, name)
    assert not hasattr(kron_plugin, "Load")
    assert kron_plugin.__path__ == [str(PACKAGE)]
