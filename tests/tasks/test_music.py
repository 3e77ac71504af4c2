import pickle
from math import log

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import kron_plugin

kron_plugin.register()

from kron_plugin.tasks.music import MusicConfig, MusicTask  # noqa: E402
from kron_plugin.tasks.rolls import load_rolls  # noqa: E402


def make(pickle_path):
    task = MusicTask(MusicConfig(data=str(pickle_path.parent)))
    for split in ("train", "valid", "test"):
        task.load_dataset(split)
    return task


def test_rolls_hold_the_notes(rolls_pickle):
    rolls = load_rolls(rolls_pickle.parent)
    assert [len(rolls[s]) for s in ("train", "valid", "test")] == [24, 5, 7]
    roll = rolls["train"][0]
    assert roll.shape == (20, 88)
    assert np.flatnonzero(roll[0]).tolist() == [40 - 21, 44 - 21]


def test_likelihood_is_summed_over_keys_and_averaged_over_predicted_steps(rolls_pickle):
    task = make(rolls_pickle)
    dataset = task.dataset("test")
    sample = dataset.collater([dataset[i] for i in range(len(dataset))])
    steps = sum(12 + i - 1 for i in range(7))
    loss = task.compute_loss(torch.zeros(7, 17, 88), sample)
    assert loss.count == steps == sample["ntokens"]
    nll, accuracy = task.metrics({**loss.sums, "sample_size": loss.count})
    assert nll.value == pytest.approx(88 * log(2), rel=1e-6)
    assert accuracy.value == 0

    perfect = 200 * (sample["target"] - 0.5)
    loss = task.compute_loss(perfect, sample)
    nll, accuracy = task.metrics({**loss.sums, "sample_size": loss.count})
    assert nll.value == pytest.approx(0, abs=1e-6)
    assert accuracy.value == 100


def test_baseline_is_the_entropy_of_the_keys(rolls_pickle):
    task = make(rolls_pickle)
    dataset = task.dataset("train")
    sample = dataset.collater([dataset[i] for i in range(len(dataset))])
    loss = task.compute_loss(torch.zeros_like(sample["target"]), sample)
    value = task.baseline({**loss.sums, "sample_size": loss.count}).value
    target = sample["target"][sample["valid"]]
    guess = task.key_probability.float().expand_as(target)
    assert value == pytest.approx(float(F.binary_cross_entropy(guess, target) * 88), rel=1e-5)
    steps = np.concatenate(load_rolls(rolls_pickle.parent)["train"])
    p = steps.mean(0)[steps.any(0)]
    entropy = -(p * np.log(p) + (1 - p) * np.log(1 - p)).sum()
    assert value == pytest.approx(entropy, rel=0.05)


def test_batch_size_does_not_change_the_sums(rolls_pickle):
    task = make(rolls_pickle)
    dataset = task.dataset("test")
    weights = torch.randn(88, 88)

    def nll(batch_size):
        batches = dataset.batch_by_size(np.arange(7), max_sentences=batch_size)
        total = 0.0
        for batch in batches:
            sample = dataset.collater([dataset[i] for i in batch])
            loss = task.compute_loss(sample["net_input"]["source"] @ weights, sample)
            total += float(loss.sums["nll_sum"])
        return total

    assert nll(1) == pytest.approx(nll(3), rel=1e-5)
    assert nll(1) == pytest.approx(nll(64), rel=1e-5)


def test_segments_predict_every_step_once(rolls_pickle):
    task = MusicTask(MusicConfig(data=str(rolls_pickle.parent), segment_steps=6))
    for split in ("train", "test"):
        task.load_dataset(split)
    parts = task.dataset("train").rolls
    assert max(map(len, parts)) == 7
    whole = task.rolls["train"]
    assert sum(len(part) - 1 for part in parts) == sum(len(roll) - 1 for roll in whole)
    first = np.concatenate([parts[0], *(part[1:] for part in parts[1:4])])
    assert np.array_equal(first, whole[0])
    assert len(task.dataset("test")) == 7


def test_segments_without_a_step_are_named(rolls_pickle):
    with pytest.raises(ValueError, match="--segment-steps=0"):
        MusicTask(MusicConfig(data=str(rolls_pickle.parent), segment_steps=0))


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path):
    marker = tmp_path / "ran"
    (tmp_path / "bomb.pickle").write_bytes(pickle.dumps({"train": Bomb(str(marker))}))
    with pytest.raises(
        ValueError, match=r"bomb\.pickle: not a pickle of plain data.*could run code"
    ):
        load_rolls(tmp_path)
    assert not marker.exists()


def test_a_split_of_single_steps_is_named(tmp_path):
    data = {"train": [[(60,), (62,)]], "valid": [[(60,), (62,)]], "test": [[(60,)], [(61,)]]}
    (tmp_path / "short.pickle").write_bytes(pickle.dumps(data))
    task = MusicTask(MusicConfig(data=str(tmp_path)))
    task.load_dataset("valid")
    with pytest.raises(ValueError, match="split 'test' have one time step each"):
        task.load_dataset("test")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([1, 2], "expected a dict of train, valid, test"),
        ({"train": [[(60,)]], "valid": [[(60,)]]}, "the split 'test' has no sequences"),
        ({"train": [], "valid": [[(60,)]], "test": [[(60,)]]}, "'train' has no sequences"),
        ({"train": [[(20,)]], "valid": [[(60,)]], "test": [[(60,)]]}, "20 is no note of a piano"),
        ({"train": [[60]], "valid": [[(60,)]], "test": [[(60,)]]}, "expected a tuple of notes"),
        ({"train": ["a"], "valid": [[(60,)]], "test": [[(60,)]]}, "expected a list of time steps"),
    ],
)
def test_wrong_content_is_named(tmp_path, data, message):
    (tmp_path / "x.pickle").write_bytes(pickle.dumps(data))
    with pytest.raises(ValueError, match=message):
        load_rolls(tmp_path)


def test_missing_truncated_and_ambiguous_files_are_named(tmp_path, rolls_pickle):
    with pytest.raises(ValueError, match="absent: no such folder"):
        load_rolls(tmp_path / "absent")
    with pytest.raises(ValueError, match=r"--music-set 'jsb'.*the folder has 'scales'"):
        load_rolls(tmp_path, "jsb")
    (tmp_path / "half.pickle").write_bytes(rolls_pickle.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"half\.pickle: not a pickle of plain data"):
        load_rolls(tmp_path, "half")
    with pytest.raises(ValueError, match=r"found half\.pickle, scales\.pickle; choose one"):
        load_rolls(tmp_path)
    assert load_rolls(tmp_path, "scales")
