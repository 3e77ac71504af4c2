from types import SimpleNamespace

import pytest
import torch
from fairseq.data import Dictionary

import kron_plugin

kron_plugin.register()

from kron_plugin.criterions.soft_unitary import SoftUnitaryCriterion  # noqa: E402
from kron_plugin.models.cells import penalty_and_deviation  # noqa: E402
from kron_plugin.models.kru import KRUModel  # noqa: E402
from kron_plugin.models.kru_lm import KRULanguageModel  # noqa: E402
from kron_plugin.models.options import CellConfig, KRUConfig  # noqa: E402
from kron_plugin.tasks.base import add_up  # noqa: E402
from kron_plugin.tasks.copy_memory import CopyMemoryConfig, CopyMemoryTask  # noqa: E402


@pytest.fixture
def task():
    task = CopyMemoryTask(CopyMemoryConfig(delay=5, eval_examples=8))
    task.load_dataset("test")
    return task


@pytest.fixture
def model(task):
    model = KRUModel.build_model(KRUConfig(hidden_size=8), task).double()
    with torch.no_grad():
        model.cell.factors[1].mul_(1.5)
    return model


def batch(task, indices):
    dataset = task.dataset("test")
    return dataset.collater([dataset[i] for i in indices])


def gradient(task, model, weight, batches):
    """The gradient as in fairseq's trainer: the summed gradients over the summed sample sizes."""
    criterion = SoftUnitaryCriterion(task, unitary_penalty=weight)
    model.zero_grad()
    count = 0
    for indices in batches:
        loss, size, _ = criterion(model, batch(task, indices))
        loss.backward()
        count += size
    return [p.grad / count for p in model.parameters()]


@pytest.mark.parametrize("batches", [[range(8)], [range(4), range(4, 8)], [[i] for i in range(8)]])
def test_lambda_means_the_same_for_every_way_to_batch(task, model, batches):
    expected = gradient(task, model, 0.0, [range(8)])
    penalty = torch.autograd.grad(penalty_and_deviation(model)[0], list(model.cell.factors))
    offsets = {id(p): 0.7 * g for p, g in zip(model.cell.factors, penalty, strict=True)}
    for p, have, want in zip(
        model.parameters(), gradient(task, model, 0.7, batches), expected, strict=True
    ):
        torch.testing.assert_close(have, want + offsets.get(id(p), 0), rtol=1e-4, atol=1e-6)


def test_loss_penalty_and_deviation_are_logged_apart(task, model):
    criterion = SoftUnitaryCriterion(task, unitary_penalty=0.5)
    loss, size, log = criterion(model, batch(task, range(3)))
    log = add_up([log])
    assert size == log["sample_size"] == 3 * 25
    assert log["loss"] == pytest.approx(float(loss.detach()))
    penalty, deviation = penalty_and_deviation(model)
    assert penalty > 0
    assert log["penalty"] / size == pytest.approx(penalty.item(), rel=1e-5)
    assert log["deviation"] / size == pytest.approx(deviation.item(), rel=1e-5)
    assert log["loss"] == pytest.approx(log["task_loss"] + 0.5 * log["penalty"], rel=1e-5)


def test_singular_values_are_logged_in_validation_alone(task, model):
    criterion = SoftUnitaryCriterion(task, unitary_penalty=0.5)
    assert "singular_max" not in criterion(model, batch(task, range(3)))[2]
    criterion.eval()
    first = criterion(model, batch(task, range(3)))[2]
    values = model.cell.singular_values()
    for name, value in (("singular_min", values.min()), ("singular_max", values.max())):
        assert first[name] / first["sample_size"] == pytest.approx(float(value.detach()))
    with torch.no_grad():
        model.cell.factors[1].mul_(2)
    second = criterion(model, batch(task, range(3)))[2]
    assert second["singular_max"] == first["singular_max"]  # once for a validation
    criterion.train().eval()
    third = criterion(model, batch(task, range(3)))[2]
    assert third["singular_max"] == pytest.approx(2 * first["singular_max"])


def test_sentence_avg_is_for_fairseqs_tasks(task):
    symbols = Dictionary()
    theirs = SimpleNamespace(target_dictionary=symbols)
    model = KRULanguageModel.build_model(CellConfig(hidden_size=8), theirs)
    tokens = torch.randint(symbols.nspecial, len(symbols) + 1, (3, 5)) - 1
    sample = {"net_input": {"src_tokens": tokens}, "target": tokens, "ntokens": 15, "nsentences": 3}
    for sentence_avg, count in ((False, 15), (True, 3)):
        criterion = SoftUnitaryCriterion(theirs, 0.5, sentence_avg)
        _, size, log = criterion(model, sample)
        assert size == log["sample_size"] == count
        assert log["penalty"] / count == pytest.approx(
            penalty_and_deviation(model)[0].item(), rel=1e-5
        )
    with pytest.raises(ValueError, match="--sentence-avg: our tasks"):
        task.build_criterion(SimpleNamespace(_name="soft_unitary", sentence_avg=True))


@pytest.mark.parametrize("weight", [-0.1, float("nan")])
def test_a_negative_weight_is_refused(task, weight):
    with pytest.raises(ValueError, match="--unitary-penalty="):
        SoftUnitaryCriterion(task, unitary_penalty=weight)
