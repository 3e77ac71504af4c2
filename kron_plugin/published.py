"""The trained models that a checkout has in recipes/models."""

from pathlib import Path
from typing import Union


def published(name: str) -> Path:
    """The file of a model in this checkout's recipes/models, which may not be there."""
    return Path(__file__).parent.parent / "recipes" / "models" / f"{name}.pt"


def find_checkpoint(name: Union[str, Path]) -> Path:
    """The file of this name, or else the published model."""
    path = Path(name)
    return published(str(name)) if not path.exists() and published(str(name)).is_file() else path
