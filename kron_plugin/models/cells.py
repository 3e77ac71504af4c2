"""The recurrent layers of all architectures, with one call."""

from math import pi
from typing import Any, Callable, Dict, List, Optional, Tuple, Union

import torch
from fairseq.modules import FairseqDropout
from torch import Tensor, nn

from ..checks import in_options, option
from ..modules import CELLS, Readout
from ..modules.factors import MAX_SIZE
from ..modules.layer import KronLayer
from ..modules.stack import RecurrentStack
from .baseline import BASELINES, BaselineCell
from .options import ARGUMENTS, CellConfig, ModelSpec, check_ranges


def build_cell(cfg: CellConfig, spec: ModelSpec, bidirectional: bool = False) -> "Cell":
    """The recurrent layers that the options describe, for the inputs of a task."""
    check_ranges(cfg)
    layers, dropout = cfg.num_layers, cfg.dropout
    cell = make_cell(
        cfg, spec.input_size, num_layers=layers, dropout=dropout, bidirectional=bidirectional
    )
    if spec.tokens and cfg.cell != "kru":
        with torch.no_grad():
            for weight in cell.input_weights():
                # The scale of an N(0, 1) embedding times U(±1/√N) weights. These weights alone
                # are too small for a single symbol to move the gates.
                weight.normal_(0, 3**-0.5)
    if spec.silent_token is not None:
        with torch.no_grad():
            for weight in cell.input_weights():
                weight[spec.silent_token] = 0
    return cell


def build_readout(cfg: CellConfig, cell: "Cell", spec: ModelSpec) -> Readout:
    """The layer from the state of the recurrent layers to the output of a task."""
    reads, directions = str(cfg.readout), cell.directions
    return Readout(cell.output_size, spec.output_size, reads=reads, directions=directions)


def make_cell(cfg: CellConfig, input_size: int, size: str = "hidden_size", **shape: Any) -> "Cell":
    """The recurrent layers of `--cell` for `input_size` features.

    Args:
        size: the option that gives the hidden size.
        shape: num_layers, dropout and bidirectional.

    Raises:
        ValueError: the cell lacks an option, or options do not fit together.
    """
    _check_options(cfg, size)
    try:
        return _make_cell(cfg, input_size, getattr(cfg, size), shape)
    except ValueError as error:
        words = {**ARGUMENTS, "hidden_size": option(size)}
        raise ValueError(in_options(str(error), words)) from error


def _make_cell(cfg: CellConfig, input_size: int, hidden_size: int, shape: Dict[str, Any]) -> "Cell":
    if cfg.cell in BASELINES:
        return BaselineCell(str(cfg.cell), input_size, hidden_size, chrono=cfg.chrono_init, **shape)
    dropout = shape.pop("dropout")
    options = {**shape, "factors": cfg.kron_factors, "backend": cfg.kron_backend}
    if cfg.unitary is not None:
        options["unitary"] = str(cfg.unitary)
    if cfg.cell == "kru":
        options.update(complex=not cfg.kron_real, activation=str(cfg.kron_activation))
        options["angle"] = cfg.angle_init
    else:
        options["chrono"] = cfg.chrono_init
    kind: Callable[..., RecurrentStack] = CELLS[str(cfg.cell)]
    cell = kind(input_size, hidden_size, **options)
    # Only fairseq's dropout can be retained in generation (--retain-dropout).
    cell.between_layers = FairseqDropout(dropout, module_name=type(cell).__name__)
    return cell


def _check_options(cfg: CellConfig, size: str) -> None:
    hidden_size = getattr(cfg, size)
    if cfg.cell in BASELINES and 4 * hidden_size**2 > MAX_SIZE:
        raise ValueError(
            f"{option(size)}={hidden_size}: too large for the dense matrices of {cfg.cell}"
        )
    of_factors = (cfg.kron_factors, cfg.kron_real, cfg.unitary, cfg.kron_backend != "auto")
    if cfg.cell in BASELINES and any(of_factors):
        raise ValueError(
            "--kron-factors, --kron-real, --unitary and --kron-backend: the cell"
            f" {cfg.cell} has no factors"
        )
    if cfg.angle_init is not None and cfg.cell != "kru":
        raise ValueError(f"--angle-init={cfg.angle_init}: is for the cell kru, not {cfg.cell}")
    if cfg.angle_init is not None and not 0 <= cfg.angle_init <= pi:
        raise ValueError(f"--angle-init={cfg.angle_init}: must be from 0 to π, in radians")
    if cfg.readout != "parts" and (cfg.cell != "kru" or cfg.kron_real):
        kind = "kru with --kron-real" if cfg.cell == "kru" else cfg.cell
        raise ValueError(f"--readout={cfg.readout}: the states of {kind} are not complex")
    if cfg.chrono_init is not None and cfg.cell in ("kru", "rnn"):
        raise ValueError(f"--chrono-init={cfg.chrono_init}: the cell {cfg.cell} has no gates")
    if cfg.chrono_init is not None and cfg.chrono_init < 2:
        raise ValueError(f"--chrono-init={cfg.chrono_init}: must be at least 2 steps")
    if cfg.cell != "kru" and cfg.kron_activation != "modrelu":
        raise ValueError(
            f"--kron-activation={cfg.kron_activation}: the cell {cfg.cell} has its own; only kru"
            " lets you choose"
        )


def penalty_and_deviation(model: nn.Module) -> Tuple[Tensor, Tensor]:
    """Two scalars over the factors of every layer in the model, 0 if there is none.

    The first is Σ ‖W_fᴴ W_f − I‖_F² over the layers with unitary="soft". The second, without a
    gradient, is max ‖W_fᴴ W_f − I‖_F over all layers.
    """
    layers = kron_layers(model)
    if not layers:
        zero = next(model.parameters()).new_zeros(())
        return zero, zero
    penalties, deviations = zip(*(layer.penalty_and_deviation() for layer in layers), strict=True)
    return torch.stack(penalties).sum(), torch.stack(deviations).max()


def singular_range(model: nn.Module) -> Optional[Tuple[float, float]]:
    """The smallest and the largest singular value of all products in the model; None if there is
    none."""
    layers = kron_layers(model)
    if not layers:
        return None
    smallest, largest = torch.stack([layer.singular_range() for layer in layers]).unbind(1)
    return float(smallest.min()), float(largest.max())


def kron_layers(model: nn.Module) -> List[KronLayer]:
    """The model's layers whose recurrent matrices are Kronecker products."""
    return [module for module in model.modules() if isinstance(module, KronLayer)]


Cell = Union[RecurrentStack, BaselineCell]  # the layers of an architecture
