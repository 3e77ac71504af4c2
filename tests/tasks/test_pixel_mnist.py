import gzip
import os
from pathlib import Path

import numpy as np
import pytest
import torch

import kron_plugin

kron_plugin.register()

from kron_plugin.tasks.idx import load_images  # noqa: E402
from kron_plugin.tasks.pixel_mnist import PixelMNISTConfig, PixelMNISTTask  # noqa: E402

from ..conftest import ROOT  # noqa: E402

NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")
REAL = Path(os.environ.get("KRON_DATA", ROOT.parent / "shared" / "data")) / "mnist"


def idx(array):
    sizes = b"".join(int(n).to_bytes(4, "big") for n in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes()


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for part, count in (("train", 12), ("t10k", 5)):
        images = rng.integers(0, 256, (count, 4, 4))
        (tmp_path / f"{part}-images-idx3-ubyte").write_bytes(idx(images))
        labels = gzip.compress(idx(np.arange(count) % 10))
        (tmp_path / f"{part}-labels-idx1-ubyte.gz").write_bytes(labels)
    return tmp_path


def make(folder, **options):
    options = {"valid_images": 3, "unverified": True, **options}
    task = PixelMNISTTask(PixelMNISTConfig(data=str(folder), **options))
    for split in ("train", "valid", "test"):
        task.load_dataset(split)
    return task


def test_splits_and_pixels(folder):
    task = make(folder)
    assert [len(task.dataset(s)) for s in ("train", "valid", "test")] == [9, 3, 5]
    images, labels = load_images(folder, "train", verify=False)
    example = task.dataset("valid")[0]
    assert torch.equal(example["source"][:, 0], torch.from_numpy(images[9] / 255).float())
    assert example["target"] == labels[9]


def test_permutation_is_fixed_and_the_same_for_every_split(folder):
    plain, permuted = make(folder), make(folder, permute=True)
    order = np.random.RandomState(92916).permutation(16)
    for split in ("train", "valid", "test"):
        before, after = plain.dataset(split)[1], permuted.dataset(split)[1]
        assert torch.equal(before["source"][order], after["source"])
    other = make(folder, permute=True, permute_seed=1).dataset("test")[1]
    assert not torch.equal(other["source"], permuted.dataset("test")[1]["source"])


def test_accuracy(folder):
    task = make(folder)
    dataset = task.dataset("test")
    sample = dataset.collater([dataset[i] for i in range(5)])
    output = torch.nn.functional.one_hot(torch.tensor([0, 1, 2, 0, 0]), 10).float()
    loss = task.compute_loss(output, sample)
    sums = {**loss.sums, "sample_size": loss.count}
    assert task.metrics(sums)[0].value == pytest.approx(60)
    assert task.baseline(sums).value == pytest.approx(20)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def other_magic(path):
    path.write_bytes(b"\x00\x00\x0d\x03" + path.read_bytes()[4:])


def header_only(path):
    path.write_bytes(path.read_bytes()[:7])


def fewer_labels(path):
    path.with_name(NAMES[1] + ".gz").write_bytes(gzip.compress(idx(np.arange(11) % 10)))


def broken_gzip(path):
    labels = path.with_name(NAMES[1] + ".gz")
    labels.write_bytes(labels.read_bytes()[:-6])


def wrong_label(path):
    path.with_name(NAMES[1] + ".gz").write_bytes(gzip.compress(idx(np.full(12, 10))))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, r"train-images.* holds 191 values, its header promises 192"),
        (other_magic, r"train-images.* begins with 00 00 0d 03"),
        (header_only, r"train-images.* begins with 00 00 08 03.* a header of 16 bytes"),
        (fewer_labels, r"has 12 images, but .*train-labels.* has 11 labels"),
        (broken_gzip, r"train-labels-idx1-ubyte\.gz: not a whole gzip file"),
        (wrong_label, r"has the label 10; expected 0 to 9"),
        (Path.unlink, r"train-images-idx3-ubyte: no such file"),
    ],
)
def test_damaged_files_are_named(folder, damage, message):
    damage(folder / NAMES[0])
    with pytest.raises(ValueError, match=message):
        make(folder)


def test_other_files_are_refused_by_their_checksum(folder):
    with pytest.raises(ValueError, match=r"train-images.* has the checksum .*--unverified"):
        make(folder, unverified=False)
    with pytest.raises(ValueError, match="absent: no such folder"):
        make(folder / "absent")
    with pytest.raises(ValueError, match="--valid-images=12: must leave"):
        make(folder, valid_images=12)


@pytest.mark.skipif(not REAL.is_dir(), reason="MNIST is not in $KRON_DATA")
def test_real_mnist_has_the_split_of_the_paper():
    task = make(REAL, unverified=False, valid_images=5000)
    assert [len(task.dataset(s)) for s in ("train", "valid", "test")] == [55000, 5000, 10000]
    assert task.dataset("train").size(0) == 784
