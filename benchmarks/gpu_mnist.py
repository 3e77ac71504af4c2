"""Permuted pixel MNIST in a plain PyTorch loop on a GPU, set like `pixel_mnist.sh paper`.

    python benchmarks/gpu_mnist.py DATA [--seeds 3] [--epochs 16] [--results FOLDER]

DATA has MNIST's four IDX files. Validation after every epoch chooses the weights, which then read
the test images once. An update is one CUDA graph. The updates a second of torch's LSTM are measured
too. The results are written to FOLDER/<gpu>.json after each seed.
"""

import argparse
import copy
import time
from pathlib import Path
from typing import Dict, Iterator, List

import numpy as np
import torch
from gpu_bench import attempt, graphed
from gpu_record import Record
from torch import Tensor, nn
from torch.nn import functional as F

from kron_plugin.modules import KRU
from kron_plugin.modules.readout import Readout
from kron_plugin.tasks.idx import VALID_IMAGES, load_images

ORDER = 92916  # seed of the order of pixels, the one of uRNN and expRNN
BATCH, RATE, PENALTY, DROPOUT = 32, 2e-3, 0.01, 0.2
SCALES = {"factors": 0.01, "biases": 0.3}  # factors of the rate, by group


class Classifier(nn.Module):
    """A recurrent layer over the pixels and a linear one on its last output."""

    def __init__(self, cell: nn.Module, readout: nn.Module) -> None:
        super().__init__()
        self.cell, self.readout, self.dropout = cell, readout, nn.Dropout(DROPOUT)

    def forward(self, images: Tensor) -> Tensor:  # shapes: (B, 784) of bytes, (B, 10)
        x = images.T.unsqueeze(-1).float() / 255
        if isinstance(self.cell, KRU):
            last = self.cell(x, need_output=False)[1]
        else:
            last = self.cell(x)[1][0]
        return self.readout(self.dropout(last[-1]))

    def penalty(self) -> Tensor:
        if isinstance(self.cell, KRU):
            return PENALTY * self.cell.unitary_penalty()
        return next(self.parameters()).new_zeros(())


def kru_classifier() -> Classifier:
    """7,762 parameters, 72 of them recurrent."""
    return Classifier(KRU(1, 512, angle=0.5), Readout(1024, 10, reads="moduli"))


def lstm_classifier(size: int) -> Classifier:
    return Classifier(nn.LSTM(1, size), nn.Linear(size, 10))


class Data:
    """Images and labels of every part on the GPU, the pixels in their fixed order."""

    def __init__(self, folder: Path) -> None:
        order = np.random.RandomState(ORDER).permutation(784)
        parts = {part: load_images(folder, part) for part in ("train", "t10k")}
        images = {n: torch.from_numpy(i[:, order].copy()).cuda() for n, (i, _) in parts.items()}
        labels = {n: torch.from_numpy(y.astype(np.int64)).cuda() for n, (_, y) in parts.items()}
        kept = len(images["train"]) - VALID_IMAGES
        self.train = (images["train"][:kept], labels["train"][:kept])
        self.valid = (images["train"][kept:], labels["train"][kept:])
        self.test = (images["t10k"], labels["t10k"])


class Training:
    """The training of one model; `step` is one update."""

    def __init__(self, model: Classifier, data: Data, total: int, seed: int) -> None:
        self.model, self.data, self.total, self.done = model.cuda().train(), data, total, 0
        groups: Dict[str, List[nn.Parameter]] = {}
        for parameter in model.parameters():
            groups.setdefault(getattr(parameter, "param_group", ""), []).append(parameter)
        self.scales = [SCALES.get(name, 1.0) for name in groups]
        made = [
            {"params": p, "lr": torch.tensor(RATE * scale, device="cuda")}
            for p, scale in zip(groups.values(), self.scales, strict=True)
        ]
        self.optimizer = torch.optim.Adam(made, capturable=True)
        self.index = torch.zeros(BATCH, dtype=torch.int64, device="cuda")
        self.loss = torch.zeros((), device="cuda")
        self.batches = self._batches(seed)
        self.step = self._update

    def _batches(self, seed: int) -> Iterator[Tensor]:
        """Endless epochs of all images in random order; every batch is full."""
        generator = torch.Generator().manual_seed(seed)
        count, left = len(self.data.train[0]), torch.empty(0, dtype=torch.int64).cuda()
        while True:
            if len(left) < BATCH:
                left = torch.cat([left, torch.randperm(count, generator=generator).cuda()])
            yield left[:BATCH]
            left = left[BATCH:]

    def _update(self) -> None:
        images, labels = (part.index_select(0, self.index) for part in self.data.train)
        self.optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(self.model(images), labels)
        (loss + self.model.penalty()).backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.loss.copy_(loss.detach())

    def run(self, updates: int) -> None:
        """Do this many updates; the rates fall with the square of the remaining share."""
        for _ in range(updates):
            self.index.copy_(next(self.batches))
            rate = RATE * (1 - self.done / self.total) ** 2
            for group, scale in zip(self.optimizer.param_groups, self.scales, strict=True):
                group["lr"].fill_(rate * scale)
            self.step()
            self.done += 1

    def capture(self) -> None:
        """Capture an update as one graph, and undo the updates that the capture takes."""
        before = copy.deepcopy(self.model.state_dict())
        replay = attempt("a graph of an update", lambda: graphed(self._update))
        if replay is not None:
            self.step = replay
        with torch.no_grad():
            for name, value in self.model.state_dict().items():
                value.copy_(before[name])
            for state in self.optimizer.state.values():
                for value in state.values():
                    value.zero_()

    @torch.no_grad()
    def accuracy(self, part: tuple) -> float:
        """Percent of the images of a part."""
        self.model.eval()
        right = [
            (self.model(images).argmax(-1) == labels).sum()
            for images, labels in zip(*(p.split(1000) for p in part), strict=True)
        ]
        self.model.train()
        return 100 * float(sum(right)) / len(part[0])


def train(data: Data, seed: int, epochs: int) -> dict:
    """A row of the record: the best epoch on validation, and its weights on test."""
    torch.manual_seed(seed)
    updates = -(-len(data.train[0]) // BATCH)
    training = Training(kru_classifier(), data, epochs * updates, seed)
    training.capture()
    best, chosen, weights, seconds = 0.0, 0, None, 0.0
    for epoch in range(1, epochs + 1):
        torch.cuda.synchronize()
        started = time.perf_counter()
        training.run(updates)
        torch.cuda.synchronize()
        seconds += time.perf_counter() - started
        valid = training.accuracy(data.valid)
        loss = float(training.loss)
        print(f"seed {seed}, epoch {epoch}: loss {loss:.4f}, valid {valid:.2f} %", flush=True)
        if valid > best:
            best, chosen, weights = valid, epoch, copy.deepcopy(training.model.state_dict())
    training.model.load_state_dict(weights)
    return {
        "model": "KRU(512), moduli read",
        "seed": seed,
        "epochs": epochs,
        "chosen": chosen,
        "valid": best,
        "test": training.accuracy(data.test),
        "updates_per_second": training.done / seconds,
        "seconds": seconds,
    }


def speed(name: str, model: Classifier, data: Data, graph: bool, updates: int = 100) -> dict:
    """Updates a second, after ten that are not timed."""
    training = Training(model, data, 10**6, seed=0)
    if graph:
        training.capture()
    training.run(10)
    torch.cuda.synchronize()
    started = time.perf_counter()
    training.run(updates)
    torch.cuda.synchronize()
    rate = updates / (time.perf_counter() - started)
    row = {
        "model": name,
        "in_a_graph": training.step != training._update,
        "updates_per_second": rate,
    }
    print(row, flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder with MNIST's four IDX files")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    data, record, rows = Data(args.data), Record(args.results), []
    for graph in (True, False):
        rows.append(speed("KRU(512)", kru_classifier(), data, graph))
        for size in (512, 128):
            rows.append(speed(f"LSTM({size})", lstm_classifier(size), data, graph))
        record.keep("permuted MNIST", rows)
    for seed in range(1, args.seeds + 1):
        rows.append(train(data, seed, args.epochs))
        print(rows[-1], flush=True)
        record.keep("permuted MNIST", rows)


if __name__ == "__main__":
    main()
