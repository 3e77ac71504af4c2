"""Reverse texts with fairseq's own commands, from raw text to translations."""

import random
import re

import pytest

from ..conftest import PACKAGE

SPLITS = {"train": 3200, "valid": 100, "test": 200}


@pytest.fixture
def command(forked):
    """Run a command of fairseq; return its output."""

    def call(name, *args):
        plugin = () if name == "preprocess" else ("--user-dir", PACKAGE, "--cpu")
        result = forked(f"fairseq_cli.{name}", *args, "-s", "src", "-t", "tgt", *plugin)
        assert result.returncode == 0, result.stdout[-3000:]
        return result.stdout

    return call


@pytest.fixture
def texts(tmp_path):
    """Texts of 3 to 8 letters of ten; the target is the reversed source. The test set's sources."""
    rng = random.Random(1)
    every = {
        " ".join(rng.choices("abcdefghij", k=rng.randint(3, 8))): None
        for _ in range(2 * sum(SPLITS.values()))
    }
    lines = iter(every)
    for split, count in SPLITS.items():
        sources = [next(lines) for _ in range(count)]
        for side, text in (("src", sources), ("tgt", [line[::-1] for line in sources])):
            (tmp_path / f"{split}.{side}").write_text("\n".join(text) + "\n")
    return sources


def test_reversed_texts_are_learned_and_translated(texts, command, tmp_path):
    prefixes = [part for split in SPLITS for part in (f"--{split}pref", split)]
    command("preprocess", *prefixes, "--destdir", "data", "--joined-dictionary")
    command(
        *("train", "data", "--task", "translation", "--arch", "kru", "--hidden-size", 32),
        *("--encoder-bidirectional", "--share-all-embeddings", "--criterion", "soft_unitary"),
        *("--optimizer", "kron_adam", "--lr", "1e-2", "--clip-norm", 1, "--batch-size", 64),
        *("--max-epoch", 3, "--no-epoch-checkpoints", "--num-workers", 0, "--seed", 1),
        *("--save-dir", "run"),
    )
    best = ("--path", "run/checkpoint_best.pt", "--beam", 5, "--num-workers", 0)
    generated = command("generate", "data", *best)
    assert float(re.search(r"BLEU4 = ([\d.]+)", generated).group(1)) > 90
    answered = command("interactive", "data", *best, "--input", "test.src")
    answers = re.findall(r"^H-\d+\t\S+\t(.*)$", answered, re.MULTILINE)
    right = [answer == text[::-1] for answer, text in zip(answers, texts, strict=True)]
    assert sum(right) > 0.9 * len(texts)
