"""Checks of options and files before any work starts; fairseq is not needed."""

import os
import re
from typing import Any, Mapping

SPLITS = ("train", "valid", "test")
MOST = 1 << 22  # steps or examples; a list of more would take gigabytes


def require(condition: bool, message: str) -> None:
    """Raise a ValueError that names the option or file, unless the condition holds."""
    if not condition:
        raise ValueError(message)


def option(name: str) -> str:
    """The option of the command line for `name`."""
    return f"--{name.replace('_', '-')}"


def in_options(message: str, options: Mapping[str, str]) -> str:
    """A layer's message about its arguments, with the names of the options instead.

    Args:
        options: the words for each argument, such as {"factors": "--kron-factors"}; a key may have
            a value, such as "complex=False".
    """
    for argument, words in options.items():
        # A plain word, such as "factors", is an argument only before "=".
        end = r"\b" if {"_", "="} & set(argument) else "(?==)"
        message = re.sub(rf"(?<![-\w]){argument}{end}", words, message)
    return message


def require_positive(cfg: Any, *names: str) -> None:
    """Raise a ValueError unless each of these options is at least 1, and at most MOST."""
    for name in names:
        value = getattr(cfg, name)
        require(value >= 1, f"{option(name)}={value}: must be at least 1")
        require(value <= MOST, f"{option(name)}={value}: must be at most {MOST}")


def require_seed(cfg: Any, name: str) -> None:
    """Raise a ValueError unless this option is a seed that numpy accepts."""
    value = getattr(cfg, name)
    require(
        0 <= value < 1 << 32,
        f"{option(name)}={value}: must be from 0 to {(1 << 32) - 1}",
    )


def require_split(split: str) -> None:
    """Raise a ValueError unless there is such a split."""
    require(split in SPLITS, f"split {split!r}: choose one of {', '.join(SPLITS)}")


def machine_memory() -> int:
    """The most bytes that this process can have: the machine's memory, or the process's limit."""
    import resource  # Windows lacks it

    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return physical if limit == resource.RLIM_INFINITY else min(limit, physical)
