import os
import random
from math import log
from pathlib import Path

import pytest
import torch

import kron_plugin

kron_plugin.register()

from kron_plugin.cli.datasets import DATASETS  # noqa: E402
from kron_plugin.models.kru_lm import KRULanguageModel  # noqa: E402
from kron_plugin.models.options import CellConfig  # noqa: E402
from kron_plugin.tasks.char_lm import CharLMConfig, CharLMTask  # noqa: E402
from kron_plugin.tasks.text import load_text, load_tokenizer  # noqa: E402

from ..conftest import ROOT  # noqa: E402

REAL = Path(os.environ.get("KRON_DATA", ROOT.parent / "shared" / "data")) / "ptb"
PIECES = "⁇\n▁etanoisrhludcmfpkgybw<>vN.'xj$-qz&0193#285\\764/*"
TEXT = "the <unk> cat  sat\non the mat\n\n it did \n"


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """An empty cache for tokenizers; compiled kernels stay in their own."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr("kron_plugin.tasks.text.cache_folder", lambda: folder)
    return folder / "tokenizers"


@pytest.fixture
def folder(tmp_path):
    for split, text in (("train", TEXT * 5), ("valid", TEXT), ("test", TEXT + "Zoë?\n")):
        (tmp_path / f"{split}.txt").write_text(text, encoding="utf-8", newline="")
    return tmp_path


def make(folder, **options):
    config = CharLMConfig(data=str(folder), **{"batch_size": 3, "tokens_per_sample": 8, **options})
    task = CharLMTask(config)
    for split in ("train", "valid", "test"):
        task.load_dataset(split)
    return task


@pytest.mark.parametrize(("vocab", "size"), [("char", None), ("unigram", 26), ("bpe", 26)])
def test_tokenizer_is_reversible_and_trained_once(folder, cache, vocab, size):
    texts = load_text(folder)
    tokenizer = load_tokenizer(folder, texts, vocab, size)
    for text in texts.values():
        assert tokenizer.decode(tokenizer.encode(text)) == text
    if vocab == "char":
        assert len(tokenizer.encode(TEXT)) == len(TEXT)
    assert sorted(p.name for p in folder.iterdir() if p.is_file()) == [
        "test.txt",
        "train.txt",
        "valid.txt",
    ]
    (model,) = cache.iterdir()
    before = model.stat().st_mtime_ns
    load_tokenizer(folder, texts, vocab, size)
    assert model.stat().st_mtime_ns == before
    # Another text to score changes the tokenizer only if its alphabet is another.
    load_tokenizer(folder, {**texts, "valid": "tac"}, vocab, size)
    assert len(list(cache.iterdir())) == 1
    load_tokenizer(folder, {**texts, "train": texts["train"] + "tac"}, vocab, size)
    load_tokenizer(folder, {**texts, "valid": "ž"}, vocab, size)
    assert len(list(cache.iterdir())) == 3


def drawn(seed, characters, count):
    return "".join(random.Random(seed).choices(characters, k=count))


ALL = "".join(map(chr, range(1, 0x3000)))
TEXTS = {
    "letters and a rare one": drawn(1, "ACGT", 3000) + "N" + drawn(2, "ACGT", 3000),
    "digits and a hyphen": drawn(3, "0123456789", 3000) + "-17\n",
    "Chinese": drawn(4, [chr(0x4E00 + i) for i in range(400)], 500),
    "names": "".join(f"{drawn(i, 'aeiou', 1 + i % 9)}\n" for i in range(1999)) + "Žofie\n",
    "one character": "a" * 100_000,
    "a single character": "a",
    "one of each": ALL,
    "emoji": "👩\u200d👩\u200d👧\u200d👦 🇩🇪 👍🏽\n" * 20,
    "combining marks": "Z\u030c o\u0308\u0304\n" * 50 + "\u0301",
    "right to left": "שלום עולם\nمرحبا\u200f\n" * 9,
    "blanks": " " * 3000 + "\t \u00a0\u3000a",
    "ends of line": "\n" * 3000 + "a",
    "carriage returns": "ab\r\nba\r\n" * 50,
    "what SentencePiece writes": "▁▂▃▄▅ <unk>\x1f<s></s>⁇\n" * 9,
    "one long line": "the cat⁇ sat on the mat " * 400,  # as text8
}


@pytest.mark.parametrize("vocab", ["char", "bpe", "unigram"])
@pytest.mark.parametrize("name", TEXTS)
def test_any_text_is_represented(tmp_path, name, vocab):
    """The text is for training, or only for scoring."""
    text = TEXTS[name]
    for train in (text, "a bee\n" * 50):
        texts = {"train": train, "valid": text, "test": text[::-1]}
        size = None if vocab == "char" else len(set(text + train)) + 20
        tokenizer = load_tokenizer(tmp_path, texts, vocab, size)
        for content in texts.values():
            symbols = tokenizer.encode(content)
            assert tokenizer.unk_id() not in symbols
            assert tokenizer.decode(symbols) == content
            if vocab == "char":
                assert len(symbols) == len(content)


@pytest.mark.skipif(not REAL.is_dir(), reason="there is no $KRON_DATA/ptb")
def test_the_characters_of_penn_treebank_keep_their_order(tmp_path):
    """Checkpoints depend on it."""
    for split in ("train", "valid", "test"):
        DATASETS["ptb"].place(REAL / f"ptb.{split}.txt", tmp_path)
    tokenizer = load_tokenizer(tmp_path, load_text(tmp_path))
    pieces = "".join(tokenizer.id_to_piece(i) for i in range(tokenizer.vocab_size()))
    assert pieces == PIECES


def test_nothing_is_written_beside_the_data(folder):
    """The folder may be read-only."""
    before = sorted(folder.iterdir())
    folder.chmod(0o500)
    make(folder)
    folder.chmod(0o700)
    assert [p for p in sorted(folder.iterdir()) if p.name != "cache"] == before


def test_a_tokenizer_beside_the_data_is_taken(folder):
    """Checkpoints may have been trained with it."""
    other = load_tokenizer(folder, {"train": "Zoë? " + TEXT}, "bpe", 40).serialized_model_proto()
    (folder / "char.model").write_bytes(other)
    assert make(folder).tokenizer.serialized_model_proto() == other


def test_a_cache_that_cannot_be_written_is_named(folder, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("kron_plugin.tasks.text.cache_folder", lambda: tmp_path / "file")
    with pytest.raises(ValueError, match=r"file/tokenizers: cannot keep .* by \$KRON_CACHE_DIR"):
        make(folder)


def test_the_training_text_is_scored_as_the_others(folder):
    (folder / "test.txt").write_bytes((folder / "train.txt").read_bytes())
    task = make(folder)
    task.load_dataset("train", whole=True)
    train, test = task.dataset("train"), task.dataset("test")
    assert len(train) == len(test) == 1
    assert torch.equal(train[0]["target"], test[0]["target"])


def collect(dataset, pad=-100):
    """The source and target symbols of a dataset, stream after stream."""
    source = torch.cat([dataset[i]["net_input"]["src_tokens"] for i in range(len(dataset))], 1)
    target = torch.cat([dataset[i]["target"] for i in range(len(dataset))], 1)
    return source.flatten(), target.flatten()[: int((target != pad).sum())]


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_every_symbol_is_asked_for_once_in_its_context(folder, split):
    task = make(folder)
    dataset = task.dataset(split)
    source, target = collect(dataset)
    assert task.tokenizer.decode(target.tolist()) == task.texts[split]
    end_of_line = task.tokenizer.piece_to_id("\n")
    assert source[: len(target)].tolist() == [end_of_line, *target[:-1].tolist()]
    assert [i for i in range(len(dataset)) if dataset[i]["is_first"]] == [0]


@pytest.mark.parametrize("cell", ["kru", "lstm"])
def test_windows_with_carried_state_equal_one_long_window(folder, cell):
    torch.manual_seed(0)
    task = make(folder)
    model = KRULanguageModel.build_model(CellConfig(cell=cell, hidden_size=8), task)
    dataset = task.dataset("train")

    def loss_of(sample):
        task._carry(sample)
        return task.compute_loss(model(**sample["net_input"]), sample).total.item()

    windows = sum(loss_of(dataset[i]) for i in range(len(dataset)))
    # An epoch always begins from the same state, even after another epoch.
    assert sum(loss_of(dataset[i]) for i in range(len(dataset))) == windows
    source, target = dataset.source, dataset.target
    output, _ = model(source)
    whole = torch.nn.functional.cross_entropy(
        output.flatten(0, 1), target.flatten(), reduction="sum", ignore_index=-100
    )
    assert windows == pytest.approx(float(whole), rel=1e-5)


@pytest.mark.parametrize(("vocab", "size"), [("char", None), ("bpe", 26)])
def test_bits_are_per_character_whatever_the_vocabulary(folder, vocab, size):
    task = make(folder, vocab_type=vocab, vocab_size=size)
    dataset = task.dataset("test")
    symbols = task.spec.output_size
    sums = {"sample_size": 0}
    for i in range(len(dataset)):
        sample = dataset[i]
        output = torch.zeros(*sample["target"].shape, symbols), {"state": None}
        loss = task.compute_loss(output, sample)
        for key, value in {**loss.sums, "sample_size": loss.count}.items():
            sums[key] = sums.get(key, 0) + value
    characters = len(task.texts["test"])
    assert sums["characters"] == characters
    expected = sums["sample_size"] * log(symbols, 2) / characters
    assert task.metrics(sums)[0].value == pytest.approx(expected, rel=1e-5)
    assert task.baseline(sums).value < log(symbols, 2)


@pytest.mark.parametrize("parts", [1, 2])
def test_state_of_the_training_streams_is_saved(folder, parts):
    task, other = make(folder), make(folder)
    state = tuple(torch.randn(1, 3, 4) for _ in range(parts))
    task.carried = {"train": state, "valid": (torch.ones(2),)}
    task.gather_states()
    saved = task.get_checkpoint_dict()["CharLMTask"]
    other.set_checkpoint_dict(saved)
    assert list(other.carried) == ["train"]
    torch.testing.assert_close(other.carried["train"], state, rtol=0, atol=0)
    if parts == 1:  # the form of older checkpoints
        other.set_checkpoint_dict({**saved, "carried": state[0]})
        torch.testing.assert_close(other.carried["train"], state, rtol=0, atol=0)


@pytest.mark.parametrize("options", [{"batch_size": 2}, {"tokens_per_sample": 9}])
def test_streams_that_are_not_those_of_a_checkpoint_are_named(folder, options):
    task, other = make(folder), make(folder, **options)
    task.carried["train"] = (torch.zeros(1, 3, 4),)
    task.gather_states()
    other.set_checkpoint_dict(task.get_checkpoint_dict()["CharLMTask"])
    other._carry(other.dataset("train")[0])
    with pytest.raises(ValueError, match="--batch-size, --tokens-per-sample: the checkpoint is"):
        other._carry(other.dataset("train")[1])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("valid.txt", b"", r"valid\.txt: holds no text"),
        ("valid.txt", b" \n \n", r"valid\.txt: holds no text"),
        ("test.txt", b"abc\0def", r"test\.txt: holds a NUL byte at 3"),
        ("train.txt", b"abc\xff", r"train\.txt: not UTF-8 text: .* at byte 3"),
        ("train.txt", "a\U0010fffcb".encode(), r"train\.txt: holds the character '.U0010fffc'"),
        ("char.model", b"no model", r"char\.model: not a SentencePiece model"),
        ("test.txt", None, r"test\.txt: no such file"),
    ],
)
def test_files_that_are_no_text_are_named(folder, name, content, message):
    (folder / name).unlink(missing_ok=True)
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as raised:
        make(folder)
    assert str(raised.value).count(".txt") < 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens_per_sample": 0}, "--tokens-per-sample=0"),
        ({"batch_size": 1000}, "--batch-size=1000: more streams than"),
        ({"batch_size": None}, "--batch-size: char_lm needs"),
        ({"vocab_size": 100}, "--vocab-size: goes with"),
        ({"vocab_type": "bpe"}, "--vocab-type bpe needs --vocab-size"),
        ({"vocab_type": "bpe", "vocab_size": 2}, "--vocab-size=2: must be at least 21, a symbol"),
    ],
)
def test_options_that_do_not_fit_are_named(folder, options, message):
    with pytest.raises(ValueError, match=message):
        make(folder, **options)


def test_unprepared_and_missing_folders_are_told_what_to_do(folder):
    with pytest.raises(ValueError, match="absent: no such folder"):
        load_text(folder / "absent")
    (folder / "train.txt").rename(folder / "ptb.train.txt")
    with pytest.raises(ValueError, match="kron-data prepare ptb"):
        load_text(folder)


def test_a_tokenizer_that_does_not_fit_the_text_says_why(folder, cache):
    make(folder)
    (model,) = cache.iterdir()
    model.rename(folder / "char.model")
    (folder / "test.txt").write_text("Ünknown$ " + "".join(map(chr, range(0x400, 0x410))))
    message = r"char\.model: does not know '\$', 'w', 'Ü', .* and 9 more of test\.txt; checkpoints"
    with pytest.raises(ValueError, match=message):
        make(folder)


def test_a_checkpoint_of_another_vocabulary_is_refused(folder):
    """Its parameters would fit if the number of symbols is the same, but mean other symbols."""
    before = make(folder)
    state = before.state_dict()
    make(folder).load_state_dict(state)
    (folder / "train.txt").write_text(TEXT.replace("c", "z"))
    after = make(folder)
    for load in (after.load_state_dict, after.set_checkpoint_dict):
        with pytest.raises(ValueError, match="the text has changed since the checkpoint was"):
            load(state)
    after.load_state_dict({})  # of an older version
