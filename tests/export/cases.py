"""Tiny models of every kind that can be exported."""

from types import SimpleNamespace

import torch

from kron_plugin.models.options import ModelSpec
from kron_plugin.modules import KRU, KRUGRU, KRULSTM, Readout
from kron_plugin.trained import Trained

INPUTS, OUTPUTS = 3, 4
REAL = {"complex": False}
CASES = {
    "modrelu": lambda: (KRU(INPUTS, 12, num_layers=2), "parts"),
    "moduli": lambda: (KRU(INPUTS, 6, factors="2x3,3x2", unitary="none"), "moduli"),
    "both": lambda: (KRU(INPUTS, 64, factors="4,4,2,2"), "both"),
    "identity": lambda: (KRU(INPUTS, 6, activation="identity"), "parts"),
    "no bias": lambda: (KRU(INPUTS, 6, activation="identity", bias=False), "parts"),
    "hard": lambda: (KRU(INPUTS, 6, unitary="hard"), "both"),
    "dense": lambda: (KRU(INPUTS, 20, factors=20, num_layers=2), "parts"),
    "real modrelu": lambda: (KRU(INPUTS, 6, **REAL), "parts"),
    "real tanh": lambda: (KRU(INPUTS, 8, activation="tanh", factors="2x4,4x2", **REAL), "parts"),
    "real identity": lambda: (KRU(INPUTS, 6, activation="identity", **REAL), "parts"),
    "lstm": lambda: (KRULSTM(INPUTS, 6, num_layers=2), "parts"),
    "gru": lambda: (KRUGRU(INPUTS, 8, num_layers=2), "parts"),
    "hard gru": lambda: (KRUGRU(INPUTS, 6, unitary="hard", bias=False), "parts"),
}

# What is exported in earnest, in every format, as arguments of `model_of`.
EXPORTED = {
    "kru": ("both", True, True),
    "lstm": ("lstm", False, True),
    "gru": ("gru", False, False),
}


def model_of(case, tokens=False, per_step=True):
    """A model away from its start, which has unitary factors and small biases."""
    cell, reads = CASES[case]()
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    directions = cell.directions
    readout = Readout(cell.output_size, OUTPUTS, reads=reads, directions=directions)
    spec = ModelSpec(INPUTS, OUTPUTS, tokens=tokens, per_step=per_step)
    return Trained(cell, readout, SimpleNamespace(spec=spec)).eval()


def inputs(model, *shape):
    if model.task.spec.tokens:
        return torch.randint(INPUTS, shape)
    return torch.randn(*shape, INPUTS)


def assert_close(found, expected):
    """To 1e-5 of the largest number."""
    expected = expected.detach()
    torch.testing.assert_close(
        found.detach(), expected, rtol=0, atol=1e-5 * expected.abs().max().item()
    )
