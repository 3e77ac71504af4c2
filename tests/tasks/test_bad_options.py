"""Each option of the tasks gives examples, or an error that names it."""

from math import nan

import torch
from hypothesis import example, given
from hypothesis import strategies as st

import kron_plugin

kron_plugin.register()

from kron_plugin.tasks.adding import AddingConfig, AddingTask  # noqa: E402
from kron_plugin.tasks.char_lm import CharLMConfig, CharLMTask  # noqa: E402
from kron_plugin.tasks.copy_memory import CopyMemoryConfig, CopyMemoryTask  # noqa: E402
from kron_plugin.tasks.midi_set import split_rolls  # noqa: E402
from kron_plugin.tasks.music import MusicConfig, MusicTask  # noqa: E402
from kron_plugin.tasks.pixel_mnist import PixelMNISTConfig, PixelMNISTTask  # noqa: E402

from ..fuzz import ends_well, fuzzed  # noqa: E402
from .test_damaged_files import IMAGES, LABELS, TEXT, song  # noqa: E402

NUMBERS = st.integers(-2, 30) | st.sampled_from([2**31, 2**62, -(2**40)])


def first_batches(task_class, cfg):
    task = task_class(cfg)
    for split in ("train", "valid", "test"):
        task.load_dataset(split)
    return [task.dataset(split).collater([task.dataset(split)[0]]) for split in task.datasets]


def options(**strategies):
    return st.fixed_dictionaries({}, optional=strategies)


SEEDS = {"data_seed": NUMBERS, "train_examples": NUMBERS, "eval_examples": NUMBERS}


@fuzzed
@given(options(steps=NUMBERS, **SEEDS))
@example({"data_seed": -1})
@example({"steps": 2**40})
def test_adding(chosen):
    batches = ends_well(first_batches, AddingTask, AddingConfig(**chosen), says="--")
    for batch in batches or []:
        assert batch["net_input"]["source"][..., 1].sum() == 2


@fuzzed
@given(options(delay=NUMBERS, symbols=NUMBERS, copy_length=NUMBERS, **SEEDS))
@example({"delay": 2**40})
def test_copy_memory(chosen):
    cfg = CopyMemoryConfig(**chosen)
    for batch in ends_well(first_batches, CopyMemoryTask, cfg, says="--") or []:
        source, target = batch["net_input"]["source"][0], batch["target"][0]
        assert torch.equal(source[: cfg.copy_length], target[-cfg.copy_length :])
        assert len(source) == cfg.delay + 2 * cfg.copy_length


@fuzzed
@given(options(permute=st.just(True), permute_seed=NUMBERS, valid_images=NUMBERS))
@example({"permute": True, "permute_seed": -1, "valid_images": 1})
def test_pixel_mnist(tmp_path, chosen):
    for part in ("train", "t10k"):
        (tmp_path / f"{part}-images-idx3-ubyte").write_bytes(IMAGES)
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(LABELS)
    cfg = PixelMNISTConfig(data=str(tmp_path), unverified=True, **chosen)
    for batch in ends_well(first_batches, PixelMNISTTask, cfg, says="--") or []:
        assert batch["net_input"]["source"].shape == (1, 4, 1)


SHARES = st.lists(st.floats() | st.sampled_from([0.2, 0.3, 0.5, 1 / 3]), max_size=4)


def test_music(tmp_path, monkeypatch):
    monkeypatch.setenv("KRON_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "songs").mkdir()
    for i in range(10):
        (tmp_path / "songs" / f"{i}.mid").write_bytes(song())

    @fuzzed
    @given(options(steps_per_beat=NUMBERS, midi_seed=NUMBERS, midi_split=SHARES))
    @example({"steps_per_beat": 10**5})
    @example({"midi_seed": -1})
    def check(chosen):
        cfg = MusicConfig(data=str(tmp_path / "songs"), **chosen)
        batches = ends_well(first_batches, MusicTask, cfg, says="--")
        assert batches is None or len(batches) == 3

    check()


@fuzzed
@given(SHARES)
@example([0.7, 0.15, 0.15])
@example([nan, 0.5, 0.5])
def test_shares(shares):
    parts = ends_well(split_rolls, list(range(20)), shares, 1, "songs", says="--midi-split")
    if parts is not None:
        assert sorted(i for part in parts.values() for i in part) == list(range(20))


@fuzzed
@given(
    options(
        vocab_type=st.sampled_from(["char", "bpe", "unigram"]),
        vocab_size=st.none() | NUMBERS,
        tokens_per_sample=NUMBERS,
        batch_size=st.none() | NUMBERS,
    )
)
@example({"vocab_type": "bpe", "vocab_size": 2**31})
def test_char_lm(tmp_path, chosen):
    for split in ("train", "valid", "test"):
        (tmp_path / f"{split}.txt").write_text(3 * TEXT)
    cfg = CharLMConfig(data=str(tmp_path), **{"batch_size": 2, **chosen})
    batches = ends_well(first_batches, CharLMTask, cfg, says="--")
    if batches is not None:
        assert len(batches[0]["target"]) == cfg.batch_size
