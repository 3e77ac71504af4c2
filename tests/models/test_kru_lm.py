"""The language model with fairseq's own task, data and commands."""

import json
import re

import pytest
import torch
from fairseq.data import Dictionary
from fairseq.sequence_generator import SequenceGenerator
from fairseq.tasks.translation import TranslationConfig, TranslationTask

import kron_plugin

kron_plugin.register()

from kron_plugin.models.kru import KRUModel  # noqa: E402
from kron_plugin.models.kru_lm import KRULanguageModel  # noqa: E402
from kron_plugin.models.options import CELLS, CellConfig, KRUConfig, ModelSpec  # noqa: E402

from ..conftest import PACKAGE  # noqa: E402


class Task:
    def __init__(self):
        self.target_dictionary = Dictionary()
        for symbol in "abcdef":
            self.target_dictionary.add_symbol(symbol)


@pytest.mark.parametrize("cell", CELLS)
def test_step_by_step_equals_all_at_once(cell):
    model = KRULanguageModel.build_model(CellConfig(cell=cell, hidden_size=8), Task())
    tokens = torch.randint(4, 10, (3, 6))
    whole, _ = model(tokens)
    state = {}
    for t in range(6):
        step, _ = model.decoder(tokens[:, : t + 1], incremental_state=state)
        torch.testing.assert_close(step[:, 0], whole[:, t])
        order = torch.tensor([2, 0, 1])  # a beam search reorders its hypotheses so
        tokens, whole = tokens[order], whole[order]
        model.decoder.reorder_incremental_state(state, order)


def test_a_language_model_reads_what_it_is_told_to():
    model = KRULanguageModel.build_model(CellConfig(hidden_size=8, readout="both"), Task())
    assert model.readout.weight.shape == (10, 24)
    assert model(torch.randint(4, 10, (3, 6)))[0].shape == (3, 6, 10)


@torch.no_grad()
def test_a_beam_search_scores_as_the_whole_text_does():
    task = Task()
    model = KRULanguageModel.build_model(CellConfig(hidden_size=8, num_layers=2), task).eval()
    symbols = task.target_dictionary
    prompt = torch.tensor([[4, 5], [6, 4]])
    generator = SequenceGenerator([model], symbols, beam_size=3, max_len_a=0, max_len_b=8)
    source = {"src_tokens": prompt, "src_lengths": torch.tensor([2, 2])}
    found = generator.generate([model], {"net_input": source}, prefix_tokens=prompt)
    for start, hypotheses in zip(prompt, found, strict=True):
        assert len(hypotheses) == 3
        for hypothesis in hypotheses:
            tokens = hypothesis["tokens"]
            assert torch.equal(tokens[:2], start)
            before = torch.cat([torch.tensor([symbols.eos()]), tokens[:-1]])
            log_probs = model.get_normalized_probs(model(before[None]), log_probs=True)[0]
            expected = log_probs.gather(1, tokens[:, None])[:, 0]
            torch.testing.assert_close(hypothesis["positional_scores"], expected)


def test_fewer_symbols_may_be_told_than_are_read():
    """fairseq's --output-dictionary-size."""
    task = Task()
    task.source_dictionary, task.target_dictionary = task.target_dictionary, Dictionary()
    model = KRULanguageModel.build_model(CellConfig(hidden_size=8), task)
    output, _ = model(torch.randint(4, 10, (3, 6)))
    assert output.shape == (3, 6, 4)


def test_a_task_of_vectors_is_told_to_use_kru():
    task = type("Vectors", (), {"spec": ModelSpec(2, 1, tokens=False, per_step=False)})()
    with pytest.raises(ValueError, match=r"--arch kru_lm: the task Vectors needs --arch kru$"):
        KRULanguageModel.build_model(CellConfig(), task)


def test_translation_is_told_to_use_kru():
    texts = Task().target_dictionary
    task = TranslationTask(TranslationConfig(), texts, texts)
    with pytest.raises(ValueError, match=r"--arch kru_lm: the task TranslationTask needs --arch"):
        KRULanguageModel.build_model(CellConfig(), task)


def test_features_are_what_scores_are_made_of():
    model = KRULanguageModel.build_model(CellConfig(hidden_size=8), Task()).eval()
    tokens = torch.randint(4, 10, (3, 6))
    features, _ = model.extract_features(tokens)
    assert features.shape == (3, 6, 16)
    assert torch.equal(model.output_layer(features), model(tokens)[0])


def test_a_task_of_symbols_is_told_to_use_kru_lm():
    with pytest.raises(ValueError, match=r"--arch kru: the task Task needs --arch kru_lm$"):
        KRUModel.build_model(KRUConfig(), Task())


def test_language_modeling_scores_as_eval_lm_does(train, forked, kron_eval, tmp_path):
    for split, count in (("train", 200), ("valid", 20)):
        (tmp_path / f"{split}.txt").write_text("the cat sat on the mat\n" * count)
    binary = tmp_path / "binary"
    forked(
        *("fairseq_cli.preprocess", "--only-source", "--destdir", binary),
        *("--trainpref", "train.txt", "--validpref", "valid.txt"),
    )
    checkpoint = train(
        binary,
        *("--task", "language_modeling", "--arch", "kru_lm", "--hidden-size", 16),
        *("--criterion", "soft_unitary", "--optimizer", "kron_adam", "--lr", "2e-2"),
        *("--tokens-per-sample", 32, "--batch-size", 4, "--max-epoch", 3),
        *("--required-batch-size-multiple", 1),
    )
    scored = forked(
        *("fairseq_cli.eval_lm", binary, "--gen-subset", "valid", "--cpu"),
        *("--path", checkpoint / "checkpoint_best.pt", "--user-dir", PACKAGE),
        *("--tokens-per-sample", 32, "--batch-size", 4),
    )
    assert scored.returncode == 0, scored.stdout[-3000:]
    bits = float(re.search(r"Loss \(base 2\): ([\d.]+)", scored.stdout).group(1))
    assert bits < 1
    recorded = kron_eval(
        "record",
        checkpoint / "checkpoint_best.pt",
        "--log",
        tmp_path / "train.log",
        "--command",
        "train",
        "--output",
        tmp_path / "run.json",
    )
    assert recorded.returncode == 2
    assert "its task is 'language_modeling', no subclass of" in recorded.stdout
    ours = kron_eval(checkpoint / "checkpoint_best.pt", "--split", "valid", "--json")
    assert ours.returncode == 0, ours.stdout
    result = json.loads(ours.stdout[ours.stdout.index("{") :])
    assert result["metrics"][0]["value"] == pytest.approx(bits, abs=1e-3)  # printed with 4 digits
    assert 2 < result["baseline"]["value"] < 4
