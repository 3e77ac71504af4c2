"""Pixel-by-pixel MNIST: read an image one pixel at a time, then name the digit (Le, Jaitly, Hinton
2015), in reading order or under a fixed permutation of the 784 pixels."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Dict, List, Tuple

import numpy as np
import torch
from fairseq.dataclass import FairseqDataclass
from fairseq.tasks import register_task
from omegaconf import MISSING
from torch import Tensor
from torch.nn import functional as F

from kron_plugin.checks import require, require_seed, require_split
from kron_plugin.models.options import ModelSpec

from .base import Loss, Metric, SequenceDataset, SequenceTask, stack
from .idx import VALID_IMAGES, load_images

PIXELS = 784  # of an image of MNIST


@dataclass
class PixelMNISTConfig(FairseqDataclass):
    data: Any = field(default=MISSING, metadata={"help": "folder with MNIST's four IDX files"})
    permute: bool = field(default=False, metadata={"help": "read pixels in a fixed random order"})
    permute_seed: int = field(
        default=92916, metadata={"help": "the order; the default is that of uRNN and expRNN"}
    )
    valid_images: int = field(
        default=VALID_IMAGES,
        metadata={"help": "images of the training files that are kept to validate"},
    )
    unverified: bool = field(
        default=False, metadata={"help": "take IDX files other than the published ones"}
    )


@register_task("pixel_mnist", dataclass=PixelMNISTConfig)
class PixelMNISTTask(SequenceTask):
    spec = ModelSpec(input_size=1, output_size=10, tokens=False, per_step=False)
    title = "Pixel-by-pixel MNIST"
    larger_is_better = True

    @staticmethod
    def setting(options: Dict[str, Any]) -> str:
        return "permuted pixel MNIST" if options["permute"] else "pixel MNIST"

    def __init__(self, cfg: PixelMNISTConfig, **kwargs) -> None:
        super().__init__(cfg, **kwargs)
        require_seed(cfg, "permute_seed")

    @cached_property
    def parts(self) -> Dict[str, Tuple[np.ndarray, np.ndarray]]:
        """Images and labels of each split, as the files hold them."""
        cfg, folder, verify = self.cfg, Path(self.cfg.data), not self.cfg.unverified
        images, labels = load_images(folder, "train", verify)
        kept = len(images) - cfg.valid_images
        require(
            0 < kept < len(images),
            f"--valid-images={cfg.valid_images}: must leave some of the {len(images)} images on"
            " both sides",
        )
        return {
            "train": (images[:kept], labels[:kept]),
            "valid": (images[kept:], labels[kept:]),
            "test": load_images(folder, "t10k", verify),
        }

    def read_data(self) -> None:
        _ = self.parts

    def load_dataset(self, split: str, combine: bool = False, **kwargs) -> None:
        require_split(split)
        images, labels = self.parts[split]
        images = self.in_order(images)
        self.datasets[split] = PixelDataset(images, labels, shuffle=split == "train")

    def in_order(
        self,
        images: np.ndarray,  # shape: (…, pixels)
    ) -> np.ndarray:  # shape: (…, pixels)
        """Images with their pixels in the order in which the model reads them."""
        if not self.cfg.permute:
            return images
        order = np.random.RandomState(self.cfg.permute_seed).permutation(images.shape[-1])
        return images[..., order]

    def encode(
        self,
        example: Any,  # an image, shape: (height, width) or (pixels,)
    ) -> Tensor:  # shape: (pixels, 1)
        """An image of integers from 0 to 255, or of floats from 0 to 1.

        Raises:
            ValueError: it is several images, has colours, another size or other numbers.
        """
        image = np.asarray(example)
        require(
            image.ndim in (1, 2),
            f"an image has shape (height, width) or (pixels,), not {image.shape}",
        )
        require(
            self.cfg.unverified or image.size == PIXELS,
            f"an image of MNIST has {PIXELS} pixels, not {image.size}",
        )
        scale = 255 if np.issubdtype(image.dtype, np.integer) else 1
        require(
            bool(((image >= 0) & (image <= scale)).all()),
            "an image holds integers from 0 to 255, or floats from 0 to 1",
        )
        return torch.from_numpy(self.in_order(image.reshape(-1))).float().div(scale).unsqueeze(-1)

    def decode(
        self,
        output: Tensor,  # shape: (10,)
    ) -> int:
        """The digit."""
        return int(output.argmax())

    def compute_loss(self, output: Tensor, sample: Dict) -> Loss:
        target = sample["target"]
        total = F.cross_entropy(output.float(), target, reduction="sum")
        sums = {
            "nll_sum": total.detach(),
            "correct": (output.argmax(-1) == target).sum(),
            "ones": (target == 1).sum(),
        }
        return Loss(total, len(target), sums)

    def metrics(self, sums: Dict[str, float]) -> List[Metric]:
        count = max(sums["sample_size"], 1)
        return [
            Metric("accuracy", 100 * sums["correct"] / count, "%"),
            Metric("nll", sums["nll_sum"] / count, "nats"),
        ]

    def baseline(self, sums: Dict[str, float]) -> Metric:
        """A constant answer of 1, the most frequent digit."""
        return Metric("accuracy", 100 * sums["ones"] / max(sums["sample_size"], 1), "%")


class PixelDataset(SequenceDataset):
    """Images as sequences of one pixel a step, between 0 and 1."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, shuffle: bool) -> None:
        super().__init__(shuffle)
        self.images, self.labels = torch.from_numpy(images.copy()), torch.from_numpy(labels.copy())

    def __len__(self) -> int:
        return len(self.images)

    def size(self, index: int) -> int:
        return self.images.shape[1]

    def __getitem__(self, index: int) -> Dict:
        source = self.images[index].float().div(255).unsqueeze(-1)
        return {"id": index, "source": source, "target": self.labels[index].long()}

    def collate(self, samples: List[Dict]) -> Dict:
        return stack(samples)
