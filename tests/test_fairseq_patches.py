"""fairseq drops nothing in silence, and its commands run with a newer numpy."""

import random
import re
from pathlib import Path
from pkgutil import resolve_name

import fairseq
import numpy as np
import pytest
import torch

from kron_plugin import batches, fairseq_patches, register
from kron_plugin.fairseq_patches import PATCHES, Patch, apply_patches

from .conftest import PACKAGE

register()

from kron_plugin.models.kru_lm import KRULanguageModel  # noqa: E402

CPU = ("--user-dir", PACKAGE, "--cpu", "--num-workers", 0)
TRAINING = (
    *("--hidden-size", 8, "--criterion", "soft_unitary", "--optimizer", "kron_adam"),
    *("--lr", "1e-2", "--max-epoch", 1, "--no-epoch-checkpoints"),
)
TEXTS = ("texts", "--task", "translation", "--path", "translation/checkpoint_best.pt")
SHORT = ("--beam", 1, "--max-len-b", 5)
LINES = ("lines", "--task", "language_modeling", "--path", "lm/checkpoint_best.pt")
EVAL_LM = ("lines", "--path", "lm/checkpoint_best.pt", "--batch-size", 4)
NO_MULTIPLE = ("--batch-size", 4, "--tokens-per-sample", 10)
# Sentences: 21 for training, 13 for validation and test each, 5 in test1. Symbols: 6 a sentence.
COMMANDS = {
    "generate": (*TEXTS, *SHORT, r"Translated (\d+) sentences", 13),
    "generate --batch-size 1": (*TEXTS, *SHORT, r"Translated (\d+) sentences", 13),
    "generate --gen-subset test1": (*TEXTS, *SHORT, r"Translated (\d+) sentences", 5),
    "interactive --input test.src": (*TEXTS, *SHORT, r"\nH-(\d+)", 12),  # the last, from 0
    "validate --max-tokens 60": (*TEXTS, r"valid on .* bsz (\d+)", 13),
    "validate": (*LINES, *NO_MULTIPLE, r"valid on .* wpb (\d+)", 78),
    "validate --sample-break-mode eos": (*LINES, *NO_MULTIPLE, r"valid on .* bsz (\d+)", 13),
    "eval_lm": (*EVAL_LM, "--tokens-per-sample", 10, r"Evaluated (\d+) tokens", 78),
    "eval_lm --sample-break-mode eos": (*EVAL_LM, r"Evaluated (\d+) tokens", 78),
    "generate --sample-break-mode eos": (*LINES, *SHORT, r"Translated (\d+) sentences", 13),
    "interactive --input test.src --nbest 1": (*LINES, *SHORT, r"\nH-(\d+)", 12),
}


def run(forked_in, folder, name, *args, status=0):
    plugin = () if name == "preprocess" else CPU
    done = forked_in(folder, f"fairseq_cli.{name}", *args, *plugin)
    assert done.returncode == status, done.stdout[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def folder(forked_in, tmp_path_factory):
    """A folder with binarised texts of five letters, and two models trained on them."""
    folder, rng = tmp_path_factory.mktemp("commands"), random.Random(1)
    for split, count in {"train": 21, "valid": 13, "test": 13, "five": 5}.items():
        lines = [" ".join(rng.choices("abcdefgh", k=5)) for _ in range(count)]
        for side in ("src", "tgt"):
            (folder / f"{split}.{side}").write_text("\n".join(lines) + "\n")
    prefixes = ("--trainpref", "train", "--validpref", "valid", "--testpref", "test,five")
    pair = ("-s", "src", "-t", "tgt", "--joined-dictionary")
    run(forked_in, folder, "preprocess", *prefixes, *pair, "--destdir", "texts")
    prefixes = [f"{word}.src" if i % 2 else word for i, word in enumerate(prefixes[:4])]
    prefixes += ["--testpref", "test.src"]
    run(forked_in, folder, "preprocess", *prefixes, "--only-source", "--destdir", "lines")
    translation = ("--task", "translation", "--arch", "kru", "--max-tokens", 60)
    buckets = ("--num-batch-buckets", 2, "--save-dir", "translation")
    run(forked_in, folder, "train", "texts", *translation, *TRAINING, *buckets)
    lm = ("--task", "language_modeling", "--arch", "kru_lm", "--sample-break-mode", "eos")
    said = run(
        *(forked_in, folder, "train", "lines", *lm, *TRAINING),
        *("--save-dir", "lm", "--batch-size", 20),
    )
    assert "num_updates 2" in said  # of 20 and of 1
    return folder


@pytest.fixture
def text(tmp_path):
    for split in ("train", "valid", "test"):
        (tmp_path / f"{split}.txt").write_text("the cat sat on the mat\n" * 4)
    return tmp_path


@pytest.mark.parametrize("name", COMMANDS)
def test_nothing_is_left_out(name, folder, forked_in):
    *args, pattern, count = COMMANDS[name]
    command, *options = name.split()
    said = run(forked_in, folder, command, *args, *options)
    assert re.findall(pattern, said)[-1] == str(count)


def test_what_is_left_out_on_demand_is_said(folder, forked_in):
    eight = ("--required-batch-size-multiple", 8)
    said = run(forked_in, folder, "generate", *TEXTS, *SHORT, *eight)
    assert "Translated 8 sentences" in said
    assert "the last batch, of 5 of 13 examples, is left out because its size is no m" in said
    said = run(
        forked_in, folder, "generate", *TEXTS, *SHORT, *eight, "--gen-subset", "test1", status=1
    )
    assert said.splitlines()[-1].endswith(
        "multiple: the last batch, of 5 of 5 examples, is left out because its size is no multiple"
    )
    long = ("--max-source-positions", 5, "--skip-invalid-size-inputs-valid-test")
    said = run(forked_in, folder, "generate", *TEXTS, *SHORT, *long, status=1)
    assert "13 samples have invalid sizes and will be skipped" in said


@pytest.mark.parametrize("command", ["generate", "interactive", "eval_lm"])
def test_commands_that_do_not_serve_our_tasks_say_so(command, text, folder, forked_in):
    """One line names what to use instead."""
    args = (text, "--task", "char_lm", "--path", "char_lm/checkpoint_best.pt")
    if not (folder / "char_lm").is_dir():
        lm = ("--arch", "kru_lm", "--batch-size", 2, "--save-dir", "char_lm")
        run(forked_in, folder, "train", *args[:3], *TRAINING, *lm)
    said = run(forked_in, folder, command, *args, status=1)
    assert "Traceback" not in said
    assert re.search(r"--task char_lm: .*kron-eval( sample)? CHECKPOINT`", said.splitlines()[-1])


HYDRA = """
common: {{user_dir: {user_dir}, seed: 1, cpu: true}}
task: {{_name: translation, data: {data}, source_lang: src, target_lang: tgt}}
model: {{_name: kru, hidden_size: 8}}
criterion: {{_name: soft_unitary}}
optimizer: {{_name: kron_adam}}
lr_scheduler: {{_name: fixed}}
dataset: {{batch_size: 20, num_workers: 0 {multiple}}}
optimization: {{lr: [0.01], max_epoch: 1}}
checkpoint: {{save_dir: {out}, no_epoch_checkpoints: true}}
"""


@pytest.mark.parametrize(
    ("multiple", "updates"), [("", 2), (", required_batch_size_multiple: 8", 1)]
)
def test_fairseq_hydra_train_leaves_nothing_out(multiple, updates, folder, forked, tmp_path):
    out, data = tmp_path / "run", folder / "texts"
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "small.yaml").write_text(
        HYDRA.format(user_dir=PACKAGE, data=data, out=out, multiple=multiple)
    )
    args = ("--config-dir", "config", "--config-name", "small", f"hydra.run.dir={out}")
    said = forked("fairseq_cli.hydra_train", *args)
    assert said.returncode == 0, said.stdout[-3000:]
    last = torch.load(out / "checkpoint_last.pt", weights_only=True)
    assert last["optimizer_history"][-1]["num_updates"] == updates


def test_a_language_model_is_sampled_from(folder):
    model = KRULanguageModel.from_pretrained(
        str(folder / "lm"), "checkpoint_best.pt", data_name_or_path=str(folder / "lines")
    )
    (sampled,) = model.sample(["a b c"], beam=2)
    assert sampled.startswith("a b c")
    assert len(model.score(["a b c", "b"])) == 2


@pytest.mark.parametrize(("groups", "workers"), [(True, 2), (True, 3), (False, 2)])
def test_grouped_shuffling_takes_all_batches(groups, workers):
    from fairseq.data import BaseWrapperDataset
    from fairseq.data.iterators import EpochBatchIterator

    taken = []
    for rank in range(workers):
        batches = EpochBatchIterator(
            BaseWrapperDataset(list(range(7))),
            collate_fn=list,
            batch_sampler=[[i] for i in range(7)],
            num_shards=workers,
            shard_id=rank,
            grouped_shuffling=groups,
        )
        taken += [x for _ in range(2) for batch in batches.next_epoch_itr() for x in batch]
    assert sorted(taken) == sorted([*range(7)] * 2)


def test_fairseq_names_nothing_of_numpy_that_is_gone():
    old = {patch.target for patch in PATCHES if patch.change is fairseq_patches.with_old_names}
    root, missing = Path(fairseq.__file__).parent, []
    for path in root.rglob("*.py"):
        module = ".".join(path.relative_to(root.parent).with_suffix("").parts)
        numpy = fairseq_patches.with_old_names(np) if f"{module}:np" in old else np
        names = set(re.findall(r"\bnp\.(\w+)", path.read_text()))
        missing += [(module, name) for name in names if not hasattr(numpy, name)]
    assert [(m, n) for m, n in missing if not m.startswith("fairseq.examples.")] == []


@pytest.mark.parametrize(
    "target", ["data.data_utils:filter_by_size", "data.data_utils:gone", "gone:f", "trainer:C.f"]
)
def test_what_is_not_as_expected_is_left_as_it_is(target, monkeypatch, caplog):
    """And a warning names the place and the version."""
    from fairseq.data import data_utils

    original = data_utils.filter_by_size
    patch = Patch(f"fairseq.{target}", "no such words", "why", batches.say_what_is_left_out)
    monkeypatch.setattr(fairseq_patches, "PATCHES", (patch,))
    apply_patches()
    assert data_utils.filter_by_size is original
    warned = f"fairseq {fairseq.__version__}: fairseq.{target} is not patched, because its source"
    assert warned in caplog.text


def test_changes_are_made_once(caplog):
    made = [resolve_name(patch.target) for patch in PATCHES]
    apply_patches()
    assert [resolve_name(patch.target) for patch in PATCHES] == made
    assert not caplog.text


def test_all_changes_are_made():
    for patch in PATCHES:
        assert patch.change.__name__ in getattr(resolve_name(patch.target), fairseq_patches.MARK)
