"""Finds the option that differs when a checkpoint does not fit, before the model is built."""

import re
from typing import Any, Callable, Dict, Mapping, Optional, Set

import torch
from torch import nn

from ..checks import machine_memory, require

StateDict = Mapping[str, Any]  # parameters by their names


def _names(pattern: str) -> Callable[[StateDict], Set[Any]]:
    """The groups of a pattern in the names of the parameters."""

    def signature(state_dict: StateDict) -> Set[Any]:
        found = [re.search(pattern, name) for name in state_dict]
        return {match.groups() for match in found if match}

    return signature


def _shapes(pattern: str) -> Callable[[StateDict], Set[Any]]:
    """The shapes of the parameters whose names match a pattern."""

    def signature(state_dict: StateDict) -> Set[Any]:
        return {(n, tuple(t.shape)) for n, t in state_dict.items() if re.search(pattern, n)}

    return signature


SHARED = "--share-all-embeddings or --share-decoder-input-output-embed"

TIED = 3  # names of one parameter: source, target and output embeddings

# The order matters, as one difference causes later ones: another cell has other factors.
SIGNS = {
    "--cell": _names(r"\.(?:layers\.\d+\.(h0)|(rnn)\.)"),
    "--unitary": _names(r"\.(maps)\."),
    "--num-layers, --bidirectional, --…-layers or --encoder-bidirectional": _names(
        r"(\w*)\.?cell\.(?:layers\.(\d+)\.|rnn\.\w+_(l\d+\w*))"
    ),
    "--decoder-attention": _names(r"(attention)\."),
    "--adaptive-softmax-cutoff": _shapes(r"adaptive_softmax\."),
    SHARED: _names(r"(?:decoder\.)(readout\.bias)"),
    "--kron-factors, --kron-real or --hidden-size": _shapes(r"\.factors\."),
    "--kron-activation": _shapes(r"\.layers\.\d+\.bias$"),
}
OTHERS = "--cell, --hidden-size, --readout, an --…-embed-dim, or the data's symbols"


def explain(own: StateDict, given: StateDict) -> Optional[str]:
    """One line that names the option behind a difference in the names or shapes of the parameters
    of a model (`own`) and a checkpoint (`given`); None if they agree."""
    names = sorted(own.keys() | given.keys())
    name = next((n for n in names if _shape(own, n) != _shape(given, n)), None)
    if name is None:
        return None
    differing = (option for option, sign in SIGNS.items() if sign(own) != sign(given))
    return (
        f"the checkpoint was trained with another {next(differing, OTHERS)}: {name}"
        f" {_shape(given, name)} there, {_shape(own, name)} here"
    )


def complete_options(cfg: Any) -> None:
    """Add missing options, with their defaults, to a checkpoint of one of our models."""
    from fairseq.models import MODEL_DATACLASS_REGISTRY
    from omegaconf import OmegaConf, open_dict

    if issubclass(_architecture(cfg), ExplainsMismatch):
        defaults = OmegaConf.structured(MODEL_DATACLASS_REGISTRY[cfg.model._name])
        with open_dict(cfg):
            for name in defaults:
                cfg.model.setdefault(name, defaults[name])


def require_fitting(state: Dict[str, Any], task: Any) -> None:
    """Raise a ValueError if the parameters of one of our checkpoints do not fit its options. The
    model is not built for this: options may describe any size."""
    architecture = _architecture(state["cfg"])
    if not issubclass(architecture, ExplainsMismatch):
        return
    given = state["model"]
    stored = sum(
        {
            t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in given.values()
        }.values()
    )
    require(
        _bytes(given) <= TIED * stored,
        "several parameters share one small block of memory, so it claims more than it holds",
    )
    difference = explain(architecture.shapes(state["cfg"].model, task), given)
    if difference is not None:
        raise ValueError(difference)


def _architecture(cfg: Any) -> type:
    """The class of a checkpoint's model; `object` for an unknown architecture."""
    from fairseq.models import ARCH_MODEL_REGISTRY

    return ARCH_MODEL_REGISTRY.get(getattr(cfg.model, "_name", None), object)


def require_shared(own: StateDict, given: StateDict) -> None:
    """Raise a ValueError if a parameter that has several names in a model has different values in
    the checkpoint: the model would keep only one of them."""
    names: Dict[int, str] = {}
    for name, tensor in own.items():
        other = names.setdefault(tensor.data_ptr(), name) if tensor.data_ptr() else name
        if other == name:
            continue
        if not torch.allclose(given[name], given[other], rtol=0, atol=0, equal_nan=True):
            raise ValueError(
                f"the checkpoint was trained with another {SHARED}: {other} and {name} are two"
                " there, and one here"
            )


def _shape(state_dict: StateDict, name: str) -> str:
    return f"has shape {tuple(state_dict[name].shape)}" if name in state_dict else "is missing"


def _bytes(state_dict: StateDict) -> int:
    return sum(t.numel() * t.element_size() for t in state_dict.values())


class ExplainsMismatch(nn.Module):
    """A model that names the wrong option if a checkpoint does not fit, or if its parameters need
    more memory than the machine has.

    A subclass defines `make`. `build_model` calls it twice, first on torch's device `meta`, where
    parameters have shapes and take no memory.
    """

    @classmethod
    def make(cls, cfg: Any, task: Any) -> Any:
        """The model that the options describe, for a task."""
        raise NotImplementedError

    @classmethod
    def build_model(cls, cfg: Any, task: Any) -> Any:
        """The model that the options describe, for a task.

        Raises:
            ValueError: options do not fit together, or the parameters do not fit into the
                machine's memory.
        """
        shapes = cls.shapes(cfg, task)
        largest = max(shapes, key=lambda name: shapes[name].numel())
        need, have = _bytes(shapes), machine_memory()
        require(
            need <= have,
            f"--hidden-size, --kron-factors and the like: the model's parameters take {need:.2g}"
            f" bytes, and this machine has {have:.2g}; the largest is {largest} of shape"
            f" {tuple(shapes[largest].shape)}",
        )
        return cls.make(cfg, task)

    @classmethod
    def shapes(cls, cfg: Any, task: Any) -> StateDict:
        """The parameters of the model that the options describe, without their memory."""
        with torch.device("meta"):
            return cls.make(cfg, task).state_dict()

    def load_state_dict(self, state_dict: StateDict, *args: Any, **kwargs: Any) -> Any:
        """As torch's.

        Raises:
            ValueError: parameters are missing, superfluous, of other shapes or no longer shared;
                the message names the option that differs.
        """
        own = self.state_dict()
        difference = explain(own, state_dict)
        if difference is None:
            require_shared(own, state_dict)
        try:
            return super().load_state_dict(state_dict, *args, **kwargs)
        except Exception as error:  # fairseq's adaptive softmax raises a bare Exception
            if difference is None:
                raise
            raise ValueError(difference) from error
