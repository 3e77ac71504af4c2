"""What is wrong with an option or a file, said before any work starts; without fairseq."""

import os
import re
from typing import Any, Mapping

SPLITS = ("train", "valid", "test")
MOST = 1 << 22  # steps or examples: some more would take gigabytes only to list them


def require(condition: bool, message: str) -> None:
    """Raise a ValueError that names the option or file, unless the condition holds."""
    if not condition:
        raise ValueError(message)


def option(name: str) -> str:
    """How a user types what the code calls `name`."""
    return f"--{name.replace('_', '-')}"


def in_options(message: str, options: Mapping[str, str]) -> str:
    """What a layer says of its arguments, in the words of a user who typed options.

    Args:
        options: what to say for an argument, such as {"factors": "--kron-factors"}; a key may have
            a value, such as "complex=False".
    """
    for argument, words in options.items():
        # One plain word, such as "factors", is an argument only where it has a value.
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
    """Raise a ValueError unless this option is a seed that numpy takes."""
    value = getattr(cfg, name)
    require(
        0 <= value < 1 << 32,
        f"{option(name)}={value}: must be from 0 to {(1 << 32) - 1}",
    )


def require_split(split: str) -> None:
    """Raise a ValueError unless there is such a split."""
    require(split in SPLITS, f"split {split!r}: choose one of {', '.join(SPLITS)}")


def machine_memory() -> int:
    """How many bytes this process can have at most: the machine's, or what its limits allow."""
    import resource  # which Windows lacks

    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return physical if limit == resource.RLIM_INFINITY else min(limit, physical)
