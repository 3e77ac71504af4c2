import pytest
import torch

import kron_plugin

kron_plugin.register()

from kron_plugin.tasks.adding import AddingConfig, AddingTask  # noqa: E402


def make(**options):
    task = AddingTask(AddingConfig(**{"steps": 11, "eval_examples": 500, **options}))
    task.load_dataset("test")
    return task


@pytest.mark.parametrize("steps", [2, 3, 11])
def test_one_number_in_each_half_is_marked_and_their_sum_asked(steps):
    task = make(steps=steps)
    dataset = task.dataset("test")
    batch = dataset.collater([dataset[i] for i in range(500)])
    numbers, markers = batch["net_input"]["source"].unbind(-1)
    assert markers[:, : steps // 2].sum(1).eq(1).all()
    assert markers[:, steps // 2 :].sum(1).eq(1).all()
    torch.testing.assert_close(batch["target"][:, 0], (numbers * markers).sum(1))
    assert 0 <= numbers.min() < 0.1 < 0.9 < numbers.max() <= 1
    assert markers.any(0).all()  # every step is marked in some example


def test_error_and_baseline():
    task = make()
    dataset = task.dataset("test")
    sample = dataset.collater([dataset[i] for i in range(500)])
    loss = task.compute_loss(sample["target"] + 0.5, sample)
    sums = {**loss.sums, "sample_size": loss.count}
    assert task.metrics(sums)[0].value == pytest.approx(0.25, rel=1e-5)
    assert task.baseline(sums).value == pytest.approx(1 / 6, rel=0.1)


def test_a_sequence_too_short_for_two_numbers_is_refused():
    with pytest.raises(ValueError, match="--steps=1"):
        make(steps=1)
