"""Train a classifier of sequences on your own arrays: here scikit-learn's digits, pixel by pixel.

    python docs/examples/digits.py              # a KRU with 3,266 parameters
    python docs/examples/digits.py --compare    # five seeds, beside nn.LSTM at three rates

Validation chooses the epoch (and, in the comparison, the rate); the test set is read once.
"""

import argparse
import copy

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

from kron_plugin import KRU, parameter_groups


class Classifier(nn.Module):
    """One class for each sequence, read from the last state."""

    def __init__(self, layer: nn.Module, width: int, classes: int) -> None:
        super().__init__()
        self.layer = layer
        self.readout = nn.Linear(width, classes)

    def forward(self, sequences):  # shape: (B, T, features)
        output, _ = self.layer(sequences)
        return self.readout(output[:, -1])


def kru():
    layer = KRU(1, 128, batch_first=True)
    model = Classifier(layer, layer.output_size, 10)
    # Factors learn a tenth as fast as the rest, because each of them moves all of W.
    return model, torch.optim.Adam(parameter_groups(model, lr=1e-2))


def lstm(lr):
    model = Classifier(nn.LSTM(1, 26, batch_first=True), 26, 10)  # 3,286 parameters
    return model, torch.optim.Adam(model.parameters(), lr=lr)


def arrays():
    """Sequences of shape (n, 64, 1) between 0 and 1, and their classes: train, valid, test."""
    images, labels = load_digits(return_X_y=True)
    sequences = torch.tensor(images / 16, dtype=torch.float32).unsqueeze(-1)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    parts = order.split([1000, 297, 500])
    return [(sequences[part], torch.tensor(labels)[part]) for part in parts]


@torch.no_grad()
def accuracy(model, sequences, classes):
    return (model(sequences).argmax(-1) == classes).float().mean().item()


def train(make, seed, epochs):
    """Validation and test accuracy of the epoch that is best on validation."""
    torch.manual_seed(seed)
    (sequences, classes), valid, test = arrays()
    model, optimiser = make()
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, epochs)
    best, kept = 0.0, model
    for _ in range(epochs):
        for batch in torch.randperm(len(classes)).split(50):
            optimiser.zero_grad()
            loss = cross_entropy(model(sequences[batch]), classes[batch])
            if isinstance(model.layer, KRU):
                loss = loss + 0.01 * model.layer.unitary_penalty()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
        schedule.step()
        score = accuracy(model, *valid)
        if score > best:
            best, kept = score, copy.deepcopy(model)
    return best, accuracy(kept, *test)


def compare(epochs):
    for name, makes in {
        "KRU(128)": {"lr 1e-2": kru},
        "LSTM(26)": {f"lr {lr}": lambda lr=lr: lstm(lr) for lr in (1e-2, 3e-2, 1e-1)},
    }.items():
        for what, make in makes.items():
            runs = [train(make, seed, epochs) for seed in range(1, 6)]
            valid, test = (torch.tensor(part) * 100 for part in zip(*runs, strict=True))
            print(
                f"{name}, {what}: validation {valid.mean():.1f} %,"
                f" test {test.mean():.1f} % (worst {test.min():.1f})"
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--compare", action="store_true", help="five seeds, and nn.LSTM")
    args = parser.parse_args()
    if args.compare:
        compare(args.epochs)
    else:
        best, test = train(kru, 1, args.epochs)
        print(f"validation {100 * best:.1f} %, test {100 * test:.1f} %")
