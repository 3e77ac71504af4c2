"""Read a checkpoint file, or say in one line why it cannot be read."""

import os
from pathlib import Path
from typing import Any, Dict, Optional, Tuple

from .checkpoints import load, named
from .checks import option, require
from .plugins import require_task
from .registration import register
from .schema import check

ARCHITECTURES = ("kru", "kru_lm")


def read(path: Path) -> Dict[str, Any]:
    """The content of a checkpoint of this plugin; no code in it is ever run.

    Raises:
        ValueError: the file is missing, damaged, or not a checkpoint of ours.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such checkpoint")
    state = load(path)
    name = _name(state, "model")
    if name is None or "model" not in state:
        raise ValueError(f"{path}: not a checkpoint of fairseq-train")
    if name not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise ValueError(f"{path}: its architecture is {name!r}; kron-eval evaluates {known}")
    with named(path, "not a whole checkpoint"):
        check(state)
    return state


def read_known(path: Path, of_ours: bool = False) -> Dict[str, Any]:
    """The content of a checkpoint whose task and model are known here.

    Args:
        of_ours: refuse fairseq's own language modelling, which language_model.py scores.

    Raises:
        ValueError: as `read`, `require_task` and `require_known_options` do.
    """
    state = read(path)
    task = _name(state, "task")
    if of_ours or task != "language_modeling":
        require_task(path, task)
    require_known_options(path, state)
    return state


def build(path: Path, state: Dict[str, Any], data: Optional[str] = None) -> Tuple[Any, Any, Any]:
    """A checkpoint's model in evaluation mode, its options and its task, which reads no data yet.

    The model runs on the fastest backend of this machine, not on the one of its training.

    Args:
        data: the folder of the data, if not where training found them.

    Raises:
        ValueError, OSError: the task needs data for its model, and they cannot be used; the message
            says why.
    """
    from fairseq.checkpoint_utils import load_model_ensemble_and_task

    task = state["cfg"]["task"]
    require(
        data is None or "data" in task, f"--data {data}: the task {task['_name']} reads no data"
    )
    overrides = {"kron_backend": "auto", **({} if data is None else {"data": data})}
    (model,), cfg, task = load_model_ensemble_and_task([str(path)], arg_overrides=overrides)
    return model.eval(), cfg, task


def require_data(path: Path, state: Dict[str, Any], data: Optional[str]) -> None:
    """Raise a ValueError unless the data of a checkpoint's task are where training found them, or
    `data` names another folder."""
    trained_on = str(state["cfg"]["task"].get("data") or os.curdir).split(os.pathsep)[0]
    require(
        data is not None or os.path.exists(trained_on),
        f"{path}: was trained on {trained_on}, which is not here; --data names another folder",
    )


def weights_alone(state: Dict[str, Any]) -> Dict[str, Any]:
    """What it takes to use and score the model of a checkpoint: its parameters, its options, and
    the state of its task. The folder of its data loses its place, which is the machine's."""
    options = {part: dict(state["cfg"][part]) for part in ("task", "model", "criterion")}
    if options["task"].get("data"):
        options["task"]["data"] = Path(options["task"]["data"]).name
    return {
        "cfg": {**options, "common": {"seed": state["cfg"]["common"]["seed"]}},
        "model": {name: tensor.clone() for name, tensor in state["model"].items()},
        "task_state": state.get("task_state", {}),
        "optimizer_history": [
            {**_NO_OPTIMISER, "num_updates": state["optimizer_history"][-1]["num_updates"]}
        ],
        "extra_state": {"train_iterator": {"epoch": 1}},
    }


_NO_OPTIMISER = {"criterion_name": "", "optimizer_name": "", "lr_scheduler_state": {}}


def require_known_options(path: Path, state: Dict[str, Any]) -> None:
    """Check that this version knows all model options of a checkpoint, and add missing options with
    their defaults.

    fairseq ignores unknown options and would build another model.

    Raises:
        ValueError: an option or its value is unknown; the message names it.
    """
    from fairseq.models import MODEL_DATACLASS_REGISTRY  # fairseq takes five seconds
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    register()
    options = dict(state["cfg"]["model"])
    known = OmegaConf.structured(MODEL_DATACLASS_REGISTRY[options.pop("_name")])
    for name, value in options.items():
        flag = option(name)
        if name not in known:
            raise ValueError(
                f"{path}: its model has the option {flag}={value}, which this"
                f" version of kron_plugin does not know; was it trained with a later version?"
            )
        try:
            known[name] = value
        except OmegaConfBaseException as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"{path}: its model has {flag}={value}: {reason}") from error
    defaults: Any = OmegaConf.to_container(known, enum_to_str=True)
    state["cfg"]["model"] = {**defaults, **state["cfg"]["model"]}


def _name(state: Any, part: str) -> Optional[str]:
    """The name of a checkpoint's model or task; None if the content is something else."""
    try:
        return state["cfg"][part]["_name"]
    except (TypeError, KeyError, IndexError):
        return None
