"""What a model's recurrent matrices, gradients and states do, for a table and a page."""

from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
from fairseq.utils import set_torch_seed
from tabulate import tabulate
from torch import Tensor

import kron_plugin

from ..checkpoints import named
from ..checks import require
from ..modules.spectrum import MOST, Spectrum, memory_steps, spectrum, turn_steps
from ..progress import progress
from ..restore import build, require_data

kron_plugin.register()

from ..models.baseline import BaselineCell  # noqa: E402  (needs register)
from .evaluate import factors  # noqa: E402
from .experiments import model_name, setting_name  # noqa: E402
from .gradients import Followed, follow  # noqa: E402
from .record import options  # noqa: E402

GATES = {1: "", 3: "rzn", 4: "ifgo"}  # of torch's layers, by the number of their matrices
SHARES = {"5 %": 0.05, "median": 0.5, "95 %": 0.95}  # of all eigenvalues
STEPS, STEPS_OF_TEXT = 1000, 300


class Gradients(NamedTuple):
    """Mean norms of gradients, relative to that at the end; the first is that at the end. See
    `Followed`."""

    last: np.ndarray  # shape: (steps,)
    whole: np.ndarray  # shape: (steps,)


class Inspection(NamedTuple):
    """What `inspect` found.

    spectra: of the first layer's matrices. gradients: of each model. states: of the first example,
    moduli if they are complex.
    """

    title: str
    about: str
    spectra: Dict[str, Spectrum]
    gradients: Dict[str, Gradients]
    is_complex: bool
    per_step: bool
    states: np.ndarray  # shape: (steps, N)


def inspect(
    files: Sequence[Tuple[Path, Dict[str, Any]]], data: Optional[str], examples: int, steps: Any
) -> Inspection:
    """Look into the first model of `files`, beside it at its start and beside the others.

    Args:
        files: paths of checkpoints and their contents, of one setting of a task.
        data: the folder of the data, if not where training found them.
        examples: the longest examples of the validation split, so many, are followed.
        steps: the last so many steps of each; None for a default.

    Raises:
        ValueError, OSError: a model cannot be inspected, or the data cannot be used; the message
            says why.
    """
    _require_one_setting(files)
    (path, state), *others = files
    require_data(path, state, data)
    model, cfg, task = build(path, state, data)
    with named(path, "cannot be inspected"):
        spectra = {k: spectrum(product) for k, product in _products(model.cell).items()}
    name = _name(state, model)
    models = {f"{name}, trained": model, f"{name}, untrained": _untrained(cfg, task)}
    for other_path, other_state in others:
        models.update(_other(other_path, other_state, data, task, name))
    task.load_dataset("valid")
    followed = _follow_all(models, task, examples, steps)
    ours = followed[f"{name}, trained"]
    states = ours[0].states
    is_complex = states.shape[1] == 2 * cfg.model.hidden_size
    return Inspection(
        title=f"{name}: {_setting(state)}",
        about=_about(path, state, len(ours), len(spectra)),
        spectra=spectra,
        gradients={label: _mean(examples) for label, examples in followed.items()},
        is_complex=is_complex,
        per_step=task.spec.per_step,
        states=np.hypot(*np.split(states, 2, axis=1)) if is_complex else states,
    )


def _require_one_setting(files: Sequence[Tuple[Path, Dict[str, Any]]]) -> None:
    """Raise a ValueError unless all checkpoints are of one direction, and of one setting of a
    task."""
    wanted = None
    for path, state in files:
        with named(path, "cannot be inspected"):
            is_bidirectional, setting = state["cfg"]["model"].get("bidirectional"), _setting(state)
        wanted = wanted or setting
        require(not is_bidirectional, f"{path}: is bidirectional, and cannot be followed by steps")
        require(
            setting == wanted, f"--beside {path}: was trained for {setting!r}, not for {wanted!r}"
        )


def _setting(state: Dict[str, Any]) -> str:
    """The name of the setting, as in the report."""
    cfg = state["cfg"]
    return setting_name({"task": cfg["task"]["_name"], "options": options(cfg)})


def _name(state: Dict[str, Any], model: Any) -> str:
    """The model's name, as in the report."""
    cfg = state["cfg"]
    run = {"cell": cfg["model"]["cell"], "options": options(cfg), **factors(model)}
    return model_name(run)


def _about(path: Path, state: Dict[str, Any], examples: int, matrices: int) -> str:
    """What else the reader should know, in lines."""
    updates = state["optimizer_history"][-1]["num_updates"]
    size = state["cfg"]["model"]["hidden_size"]
    lines = [
        f"{path.parent.name}/{path.name}",
        f"{updates} updates; {examples} examples of validation",
    ]
    if size > MOST:
        lines.append(f"Of the {size} values of a spectrum, {MOST} are drawn at random.")
    if matrices > 1:
        lines.append("Not these matrices alone, but also the gates decide what is kept.")
    return "\n".join(lines)


def _products(cell: Any) -> Dict[str, List[Tensor]]:
    """The factors of the first layer's recurrent matrices; of torch's layers, the matrices."""
    if isinstance(cell, BaselineCell):
        weight = cell.rnn.weight_hh_l0
        gates = GATES[len(weight) // cell.rnn.hidden_size]
        products = [[w] for w in weight.chunk(max(1, len(gates)))]
    else:
        gates, products = cell.layers[0].recurrence.cell.gates, cell.layers[0].products()
    return dict(zip([f"W_{gate}" for gate in gates] or ["W"], products, strict=True))


def _untrained(cfg: Any, task: Any) -> Any:
    """The model as its training began."""
    set_torch_seed(cfg.common.seed)  # as fairseq does before it builds a model
    return task.build_model(cfg.model).eval()


def _other(path: Path, state: Dict[str, Any], data: Optional[str], task: Any, name: str) -> Dict:
    """A model to compare with, by its name."""
    model, _, its_task = build(path, state, data)
    symbols = [getattr(one, "vocabulary", None) for one in (task, its_task)]
    require(
        its_task.spec == task.spec and symbols[0] == symbols[1],
        f"--beside {path}: its inputs or outputs are others",
    )
    its_name = _name(state, model)
    where = f" of {path.parent.name}" if its_name == name else ""
    return {f"{its_name}{where}, trained": model}


def _follow_all(
    models: Dict[str, Any], task: Any, examples: int, steps: Optional[int]
) -> Dict[str, List[Followed]]:
    """The longest examples, followed through each model."""
    dataset = task.dataset("valid")
    longest = sorted(range(len(dataset)), key=dataset.size)[-examples:]
    batches = dataset.batch_by_size(np.array(longest), max_sentences=examples)
    steps = steps or (STEPS_OF_TEXT if task.spec.arch == "kru_lm" else STEPS)
    followed: Dict[str, List[Followed]] = {name: [] for name in models}
    with progress("following", len(models) * len(batches), "batches") as advance:
        for name, model in models.items():
            model.double().requires_grad_(False)
            for batch in batches:
                sample = dataset.collater([dataset[i] for i in batch])
                followed[name] += follow(model, task, sample, steps)
                advance(1)
            require(bool(followed[name]), f"--steps={steps}: the loss counts none of them")
    return followed


def _mean(examples: List[Followed]) -> Gradients:
    """The mean over examples by the distance from the end, as far as all of them go."""
    shortest = min(len(one.last) for one in examples)
    last, whole = (
        np.mean([norms[::-1][:shortest] for norms in kind], axis=0)
        for kind in zip(*((one.last, one.whole) for one in examples), strict=True)
    )
    return Gradients(last / last[0], whole / last[0])


def table(seen: Inspection) -> str:
    """The numbers of an inspection as two readable tables."""
    rows: List[List[Any]] = []
    columns = [_numbers(spectrum) for spectrum in seen.spectra.values()]
    for name in columns[0]:
        rows.append([name, *(f"{column[name]:.4g}" for column in columns)])
    matrices = _plain(rows, ["", *seen.spectra])
    norms = [gradients.last for gradients in seen.gradients.values()]
    furthest = len(norms[0]) - 1
    steps = [step for step in (1, 10, 100, 1000) if step < furthest] + [furthest]
    rows = [[f"{step} steps before", *(f"{norm[step]:.3g}" for norm in norms)] for step in steps]
    gradients = _plain(rows, ["gradient, of that at the end", *seen.gradients])
    return "\n\n".join([f"{seen.title}\n{seen.about}", matrices, gradients])


def _numbers(of: Spectrum) -> Dict[str, float]:
    """The numbers of a matrix in the table."""
    moduli, singular = of.eigenvalues.abs(), of.singular_values
    numbers = {
        "singular values, smallest": float(singular.min()),
        "singular values, largest": float(singular.max()),
        "eigenvalues |λ|, smallest": float(moduli.min()),
        "eigenvalues |λ|, largest": float(moduli.max()),
    }
    for what, of_all in (("memory", memory_steps), ("turn", turn_steps)):
        steps = of_all(of.eigenvalues).numpy()
        for name, share in SHARES.items():
            # Some may be infinite, between which nothing can be interpolated.
            value = np.quantile(steps, share, method="inverted_cdf")
            numbers[f"{what} in steps, {name}"] = float(value)
    return numbers


def _plain(rows: List[List[Any]], headers: List[str]) -> str:
    return tabulate(rows, headers, tablefmt="plain", disable_numparse=True)
