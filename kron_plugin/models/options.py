"""What shapes a model: the user's options, and what the task asks for."""

from dataclasses import dataclass, field
from typing import NamedTuple, Optional

from fairseq.dataclass import ChoiceEnum, FairseqDataclass

from ..ops import ACTIVATIONS

CELLS = ("kru", "rnn", "lstm", "gru")


@dataclass
class CellConfig(FairseqDataclass):
    """Options of the recurrent layer, shared by all architectures."""

    cell: ChoiceEnum(CELLS) = field(
        default="kru", metadata={"help": "recurrent layer; rnn, lstm and gru are torch's own"}
    )
    hidden_size: int = field(
        default=128, metadata={"help": "N, size of the state (complex numbers for kru)"}
    )
    kron_factors: Optional[str] = field(
        default=None,
        metadata={"help": "factor sizes, as '16,32' or '2x4,4x2' (default: the primes of N)"},
    )
    kron_real: bool = field(
        default=False,
        metadata={"help": "real factors instead of complex ones"},
    )
    kron_activation: ChoiceEnum(ACTIVATIONS) = field(
        default="modrelu", metadata={"help": "nonlinearity of kru; tanh with --kron-real only"}
    )
    kron_backend: str = field(
        default="auto", metadata={"help": "backend of the recurrence; auto takes the fastest"}
    )


class ModelSpec(NamedTuple):
    """The shape of a sequence problem.

    input_size: features per step; with `tokens`, the number of symbols.
    output_size: numbers per output: classes, keys of a piano, 1 for a regression.
    tokens: inputs are integers below input_size instead of vectors.
    per_step: an output for every step instead of one for the sequence.
    silent_token: a symbol that stands for "nothing"; its input vector starts at 0.
    """

    input_size: int
    output_size: int
    tokens: bool
    per_step: bool
    silent_token: Optional[int] = None


def spec_of(task, arch: str) -> ModelSpec:
    """What a task asks of a model: our tasks say it, others have a dictionary of symbols.

    Raises:
        ValueError: the task says neither.
    """
    if hasattr(task, "spec"):
        return task.spec
    dictionary = getattr(task, "target_dictionary", None)
    if dictionary is None:
        raise ValueError(
            f"--arch {arch}: the task {type(task).__name__} neither says what model it needs nor"
            " has a dictionary of symbols"
        )
    return ModelSpec(len(dictionary), len(dictionary), True, True, silent_token=dictionary.pad())
