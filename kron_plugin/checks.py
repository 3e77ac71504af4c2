"""What is wrong with an option or a file, said before any work starts; without the toolkit."""

from typing import Any

SPLITS = ("train", "valid", "test")
MOST = 1 << 27  # steps or examples: more than that take gigabytes only to count them


def require(condition: bool, message: str) -> None:
    """Raise a ValueError that names the option or file, unless the condition holds."""
    if not condition:
        raise ValueError(message)


def require_positive(cfg: Any, *names: str) -> None:
    """Raise a ValueError unless each of these options is at least 1, and at most MOST."""
    for name in names:
        value = getattr(cfg, name)
        require(value >= 1, f"--{name.replace('_', '-')}={value}: must be at least 1")
        require(value <= MOST, f"--{name.replace('_', '-')}={value}: must be at most {MOST}")


def require_seed(cfg: Any, name: str) -> None:
    """Raise a ValueError unless this option is a seed that numpy takes."""
    value = getattr(cfg, name)
    require(
        0 <= value < 1 << 32,
        f"--{name.replace('_', '-')}={value}: must be from 0 to {(1 << 32) - 1}",
    )


def require_split(split: str) -> None:
    """Raise a ValueError unless there is such a split."""
    require(split in SPLITS, f"split {split!r}: choose one of {', '.join(SPLITS)}")
