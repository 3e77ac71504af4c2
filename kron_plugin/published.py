"""The trained models that a checkout has in recipes/models."""

from pathlib import Path


def published(name: str) -> Path:
    """The file of a model in this checkout's recipes/models, which may not be there."""
    return Path(__file__).parent.parent / "recipes" / "models" / f"{name}.pt"
