"""What the toolkit lacks to go on from a checkpoint exactly, whenever the run before was killed.

It writes a checkpoint under another name and renames it, but makes those after the first by copying
over them: a process killed meanwhile leaves `checkpoint_last.pt` truncated, beside a whole one. And
only the first of several workers saves, from which the others' states would be missing.
"""

import logging
import zipfile
from functools import wraps
from math import inf
from pathlib import Path

from torch import distributed

logger = logging.getLogger(__name__)


def is_damaged(path: Path) -> bool:
    """Whether a file of `torch.save` is incomplete or altered; other files are left to the loader.

    Such a file is a zip archive, with its table of contents at the end and checksums.
    """
    with open(path, "rb") as file:
        if not b"PK".startswith(file.read(2)):
            return False
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is not None
    except (zipfile.BadZipFile, EOFError, RuntimeError):
        return True


def latest_whole(path: Path) -> Path:
    """The checkpoint to go on from: this one, or if it is damaged the latest whole one beside it.

    Raises:
        ValueError: it is damaged and there is no other.
    """
    if not path.is_file() or not is_damaged(path):
        return path
    others = (other for other in path.parent.glob("checkpoint*.pt") if other != path)
    for other in sorted(others, key=lambda p: p.stat().st_mtime_ns, reverse=True):
        if not is_damaged(other):
            logger.warning("%s is damaged; going on from %s", path, other.name)
            return other
    raise ValueError(
        f"{path}: damaged, and no whole checkpoint beside it; remove it to train from the start"
    )


def make_exact() -> None:
    """Have the toolkit save and load so that a run resumes exactly; harmless to repeat."""
    from fairseq import checkpoint_utils
    from fairseq.trainer import Trainer

    save, load = checkpoint_utils.save_checkpoint, Trainer.load_checkpoint
    if hasattr(load, "__wrapped__"):
        return

    @wraps(save)
    def save_all(cfg, trainer, *args, **kwargs):
        gather = getattr(trainer.task, "gather_states", None)
        if gather is not None:
            gather()
        return save(cfg, trainer, *args, **kwargs)

    @wraps(load)
    def load_whole(trainer, filename, *args, **kwargs):
        path = Path(filename)
        if path.name.startswith("checkpoint_last"):  # not one that the user has named
            path = latest_whole(path)
        extra_state = load(trainer, str(path), *args, **kwargs)
        _agree(trainer, path)
        if trainer.get_num_updates() >= (trainer.cfg.optimization.max_update or inf):
            # The toolkit would find out only after one more.
            logger.info("%s: --max-update is reached, nothing is left to train", path)
            raise SystemExit
        return extra_state

    checkpoint_utils.save_checkpoint, Trainer.load_checkpoint = save_all, load_whole


def _agree(trainer, path: Path) -> None:
    """Raise a ValueError unless all workers go on from the same update."""
    workers = trainer.data_parallel_world_size
    if workers == 1:
        return
    updates = [0] * workers
    distributed.all_gather_object(updates, trainer.get_num_updates())
    if len(set(updates)) > 1:
        raise ValueError(
            f"--save-dir: the workers' checkpoints {path} are after {updates} updates; workers need"
            " a folder that all of them see"
        )
