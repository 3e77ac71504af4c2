"""The nonlinearity of complex states, and the ways of storing complex numbers as real ones."""

import torch
from torch import Tensor


def modrelu(
    z: Tensor,  # shape: (..., N), real or complex
    bias: Tensor,  # shape: (N,), real
) -> Tensor:  # shape: (..., N)
    """relu(|z| + b) · z / |z|, which keeps the phase and moves the modulus (uRNN eq. (8)).

    At z = 0 the direction is undefined; value and gradient are 0 there by definition, so that they
    are finite everywhere. (As |z| falls to 0 with b > 0 the true derivative grows like b/|z|.)
    """
    modulus = z.abs()
    at_zero = modulus == 0  # not `~(modulus > 0)`: NaN must stay NaN
    scale = torch.relu(modulus + bias) / torch.where(at_zero, torch.ones_like(modulus), modulus)
    return torch.where(at_zero, torch.zeros_like(z), scale * z)


def join(
    h: Tensor,  # shape: (..., 2N), real: the real parts, then the imaginary parts
) -> Tensor:  # shape: (..., N), complex
    """The complex vector of a split one: the inverse of `split`."""
    real, imag = h.chunk(2, dim=-1)
    return torch.complex(real, imag)


def split(
    z: Tensor,  # shape: (..., N), complex
) -> Tensor:  # shape: (..., 2N), real
    """[Re z ; Im z], the form in which states leave the recurrence."""
    return torch.cat([z.real, z.imag], dim=-1)


def as_complex(
    pairs: Tensor,  # shape: (..., 2), real: real and imaginary part
) -> Tensor:  # shape: (...,), complex
    """The complex numbers of pairs, which may be anywhere in memory.

    It views a copy: `torch.view_as_complex` refuses a part of a flat buffer that begins at an odd
    place, and a traced graph cannot ask where a tensor begins.
    """
    return torch.view_as_complex(pairs.contiguous().clone())
