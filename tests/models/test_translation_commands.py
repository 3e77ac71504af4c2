"""Texts to be turned around, with the toolkit's own commands from raw text to translations."""

import random
import re
import sys

import pytest

from ..conftest import PACKAGE, run

SPLITS = {"train": 3200, "valid": 100, "test": 200}


def command(name, *args, cwd, stdin=None):
    plugin = () if name == "preprocess" else ("--user-dir", PACKAGE)
    source = ("-s", "src", "-t", "tgt")
    cpu = () if name == "preprocess" else ("--cpu",)
    module = f"fairseq_cli.{name}"
    result = run(sys.executable, "-m", module, *args, *source, *plugin, *cpu, cwd=cwd, stdin=stdin)
    assert result.returncode == 0, result.stdout[-3000:]
    return result.stdout


@pytest.fixture
def texts(tmp_path):
    """3 to 8 letters of ten; the target is the source backwards. The test set's sources."""
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


def test_reversed_texts_are_learned_and_translated(texts, tmp_path):
    data = tmp_path / "data"
    prefixes = [part for split in SPLITS for part in (f"--{split}pref", split)]
    command("preprocess", *prefixes, "--destdir", data, "--joined-dictionary", cwd=tmp_path)
    command(
        *("train", data, "--task", "translation", "--arch", "kru", "--hidden-size", 32),
        *("--encoder-bidirectional", "--share-all-embeddings", "--criterion", "soft_unitary"),
        *("--optimizer", "kron_adam", "--lr", "1e-2", "--clip-norm", 1, "--batch-size", 64),
        *("--max-epoch", 3, "--no-epoch-checkpoints", "--num-workers", 0, "--seed", 1),
        *("--save-dir", tmp_path / "run"),
        cwd=tmp_path,
    )
    best = ("--path", tmp_path / "run" / "checkpoint_best.pt", "--beam", 5)
    generated = command("generate", data, *best, cwd=tmp_path)
    assert float(re.search(r"BLEU4 = ([\d.]+)", generated).group(1)) > 90
    asked = "\n".join(texts) + "\n"
    said = command("interactive", data, *best, cwd=tmp_path, stdin=asked)
    answers = re.findall(r"^H-\d+\t\S+\t(.*)$", said, re.MULTILINE)
    right = [answer == text[::-1] for answer, text in zip(answers, texts, strict=True)]
    assert sum(right) > 0.9 * len(texts)
