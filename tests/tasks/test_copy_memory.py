from math import log

import pytest
import torch
from omegaconf import OmegaConf
from torch.nn import functional as F

import kron_plugin

kron_plugin.register()

from kron_plugin.criterions.soft_unitary import SoftUnitaryCriterion  # noqa: E402
from kron_plugin.models.kru import KRUModel  # noqa: E402
from kron_plugin.models.options import KRUConfig  # noqa: E402
from kron_plugin.tasks.base import add_up  # noqa: E402
from kron_plugin.tasks.copy_memory import CopyMemoryConfig, CopyMemoryTask  # noqa: E402


def make(**options):
    task = CopyMemoryTask(CopyMemoryConfig(**{"delay": 7, "eval_examples": 11, **options}))
    for split in ("train", "valid", "test"):
        task.load_dataset(split)
    return task


def test_an_example_shows_symbols_then_blanks_then_asks():
    task = make(symbols=4, copy_length=3)
    example = task.dataset("test")[0]
    source, target = example["source"].tolist(), example["target"].tolist()
    assert len(source) == len(target) == 7 + 2 * 3
    assert all(1 <= s <= 4 for s in source[:3])
    assert source[3:9] == [0] * 6  # T - 1 blanks
    assert source[9:] == [5, 0, 0, 0]  # the signal, then blanks over the answer
    assert target == [0] * 10 + source[:3]


def test_training_data_never_repeat_and_the_others_never_change():
    def draw(split, epoch):
        dataset = make().dataset(split)
        dataset.set_epoch(epoch)
        return torch.stack([dataset[i]["source"] for i in range(11)])

    assert torch.equal(draw("train", 1), draw("train", 1))
    assert not torch.equal(draw("train", 1), draw("train", 2))
    assert torch.equal(draw("valid", 1), draw("valid", 2))
    assert not torch.equal(draw("valid", 1), draw("test", 1))
    assert len({tuple(row.tolist()) for row in draw("train", 1)}) == 11


def test_options_are_plain_values():
    """A read through omegaconf for each number of each example is a third of an update."""
    cfg = OmegaConf.structured(CopyMemoryConfig(delay=7, data_seed=3))
    task = CopyMemoryTask(cfg)
    assert vars(task.cfg) == dict(cfg)
    task.load_dataset("test")
    assert len(task.dataset("test")[0]["source"]) == 7 + 2 * cfg.copy_length


def test_a_filler_counts_for_nothing():
    task = make()
    model = KRUModel.build_model(KRUConfig(hidden_size=8), task)
    criterion = SoftUnitaryCriterion(task, unitary_penalty=0.5)
    dataset = task.dataset("test")
    _, _, counted = task.valid_step(dataset.collater([dataset[0]]), model, criterion)
    loss, size, log = task.valid_step(dataset.collater([]), model, criterion)
    assert float(loss) == size == sum(add_up([log]).values()) == 0
    # fairseq adds up tensors and numbers of all workers apart from each other.
    assert list(map(type, log.values())) == list(map(type, counted.values()))


def test_metrics_of_perfect_and_uniform_answers():
    task = make()
    dataset = task.dataset("test")
    sample = dataset.collater([dataset[i] for i in range(11)])
    perfect = 100 * torch.nn.functional.one_hot(sample["target"], 9).float()
    loss = task.compute_loss(perfect, sample)
    sums = {**loss.sums, "sample_size": loss.count, "nsentences": 11}
    bits, recall = task.metrics(sums)
    assert bits.value == pytest.approx(0, abs=1e-6)
    assert recall.value == 100
    assert loss.count == 11 * 27

    loss = task.compute_loss(torch.zeros(11, 27, 9), sample)
    assert float(loss.total) == pytest.approx(11 * 27 * log(9), rel=1e-5)

    output = torch.randn(27, 11, 9).transpose(0, 1)
    expected = F.cross_entropy(output.flatten(0, 1), sample["target"].flatten(), reduction="sum")
    torch.testing.assert_close(task.compute_loss(output, sample).total, expected)


@pytest.mark.parametrize(("delay", "bits"), [(1000, 0.0294), (2000, 0.0149), (100, 0.25)])
def test_baseline_is_the_published_one(delay, bits):
    assert make(delay=delay).baseline({}).value == pytest.approx(bits, abs=5e-5)


@pytest.mark.parametrize("name", ["delay", "symbols", "copy_length", "train_examples"])
def test_options_below_one_are_named(name):
    with pytest.raises(ValueError, match=f"--{name.replace('_', '-')}=0: must be at least 1"):
        make(**{name: 0})


@pytest.mark.parametrize("batch_size", [1, 4, 11, 64])
def test_no_example_is_dropped_or_repeated(batch_size):
    task = make()
    batches = task.get_batch_iterator(
        task.dataset("valid"),
        max_sentences=batch_size,
        required_batch_size_multiple=8,  # fairseq's default, which drops the remaining examples
    ).next_epoch_itr(shuffle=False)
    assert sorted(i for batch in batches for i in batch["id"].tolist()) == list(range(11))
