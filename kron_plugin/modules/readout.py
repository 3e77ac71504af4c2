"""The linear layer on a state: it reads the parts, the moduli or both."""

import torch
from torch import Tensor, nn

from .arguments import choice, whole
from .factors import MAX_SIZE

READS = ("parts", "moduli", "both")


class Readout(nn.Linear):
    """o = V h + c, or V |h| + c, or V [h ; |h|] + c.

    The recurrent matrix turns the phases of a complex state at every step. A linear layer on the
    parts sees the modulus of a number only mixed with its phase. Moduli alone need half the
    weights.

    Args:
        input_size: features of the output of `KRU`, of both directions if there are two.
        output_size: features of o.
        reads: "parts", [Re h ; Im h] or a real state as it is; "moduli", |h|; or "both".
        directions: 2 for a bidirectional layer, whose two states follow each other in h.

    Raises:
        ValueError: unknown `reads`, or 2 · directions does not divide input_size (for moduli).
        TypeError: a size is not a whole number.
    """

    def __init__(
        self, input_size: int, output_size: int, *, reads: str = "parts", directions: int = 1
    ) -> None:
        whole("input_size", input_size)
        whole("output_size", output_size)
        whole("directions", directions)
        choice("reads", reads, READS)
        if reads != "parts" and input_size % (2 * directions):
            raise ValueError(
                f"input_size={input_size}: reads={reads!r} needs a real and an imaginary part of"
                f" every number in each of {directions} direction(s)"
            )
        if input_size * output_size > MAX_SIZE:
            raise ValueError(
                f"input_size={input_size}: too large to weigh into {output_size} numbers"
            )
        half = input_size // 2
        sizes = {"parts": input_size, "moduli": half, "both": input_size + half}
        super().__init__(sizes[reads], output_size)
        self.reads = reads
        self.directions = directions

    def forward(
        self,
        h: Tensor,  # shape: (…, input_size): per direction the real parts, then the imaginary ones
    ) -> Tensor:  # shape: (…, output_size)
        if self.reads == "parts":
            return super().forward(h)
        re_im = h.unflatten(-1, (self.directions, 2, -1))
        # The gradient of torch.hypot at 0 is NaN; that of a norm is 0.
        moduli = torch.linalg.vector_norm(re_im, dim=-2).flatten(-2)
        return super().forward(moduli if self.reads == "moduli" else torch.cat([h, moduli], dim=-1))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, reads={self.reads!r}"
