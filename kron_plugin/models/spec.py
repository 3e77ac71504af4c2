"""What a task asks of a model."""

from typing import NamedTuple, Optional


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
