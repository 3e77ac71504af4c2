"""Which option differs when a checkpoint does not fit a model."""

import re
from typing import Any, Callable, Dict, Set

from torch import Tensor

StateDict = Dict[str, Tensor]


def _names(pattern: str) -> Callable[[StateDict], Set[Any]]:
    """What a pattern finds in the names of parameters."""

    def signature(state_dict: StateDict) -> Set[Any]:
        found = [re.search(pattern, name) for name in state_dict]
        return {match.groups() for match in found if match}

    return signature


def _shapes(pattern: str) -> Callable[[StateDict], Set[Any]]:
    """The shapes of those parameters whose name fits a pattern."""

    def signature(state_dict: StateDict) -> Set[Any]:
        return {(n, tuple(t.shape)) for n, t in state_dict.items() if re.search(pattern, n)}

    return signature


# Tried in this order, as the first difference entails others: another cell has other factors.
SIGNS = {
    "--cell": _names(r"\.(?:layers\.\d+\.(h0)|(rnn)\.)"),
    "--unitary": _names(r"\.(maps)\."),
    "--num-layers, --encoder-layers, --decoder-layers or --encoder-bidirectional": _names(
        r"(\w*)\.?cell\.(?:layers\.(\d+)\.|rnn\.\w+_(l\d+\w*))"
    ),
    "--decoder-attention": _names(r"(attention)\."),
    "--adaptive-softmax-cutoff": _shapes(r"adaptive_softmax\."),
    "--share-all-embeddings or --share-decoder-input-output-embed": _names(
        r"(?:decoder\.)(readout\.bias)"
    ),
    "--kron-factors, --kron-real or --hidden-size": _shapes(r"\.factors\."),
}
OTHERS = "--cell, --hidden-size, an --…-embed-dim, or the data's symbols"


def explain(own: StateDict, given: StateDict) -> str:
    """One line on the option with which a checkpoint's parameters differ from a model's own."""
    differing = (option for option, sign in SIGNS.items() if sign(own) != sign(given))
    option = next(differing, OTHERS)
    names = sorted(own.keys() | given.keys())
    name = next(n for n in names if _shape(own, n) != _shape(given, n))
    return (
        f"the checkpoint was trained with another {option}: {name} {_shape(given, name)} there,"
        f" {_shape(own, name)} here"
    )


def _shape(state_dict: StateDict, name: str) -> str:
    return f"has shape {tuple(state_dict[name].shape)}" if name in state_dict else "is missing"


class ExplainsMismatch:
    """A model that says which option is wrong when a checkpoint does not fit."""

    def load_state_dict(self, state_dict: StateDict, *args: Any, **kwargs: Any) -> Any:
        """As torch's.

        Raises:
            ValueError: parameters are missing, left over or of other shapes; the message names the
                option that makes them so.
        """
        try:
            return super().load_state_dict(state_dict, *args, **kwargs)
        except RuntimeError as error:
            raise ValueError(explain(self.state_dict(), state_dict)) from error
