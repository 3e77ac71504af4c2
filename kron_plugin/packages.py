"""Packages that an installation may lack (`pip install --no-deps`), and how to get them."""

from typing import Optional

# Modules by what pip calls them. The layers need the first two alone.
PACKAGES = {
    "torch": "torch",
    "numpy": "numpy",
    "fairseq": "fairseq-fixed",
    "omegaconf": "fairseq-fixed",  # which brings it in a version that suits
    "sentencepiece": "sentencepiece",
    "matplotlib": "matplotlib",
    "mido": "mido",
    "pretty_midi": "pretty_midi",
    "tabulate": "tabulate",
    "tqdm": "tqdm",
}


def missing_package(error: ModuleNotFoundError) -> Optional[str]:
    """What to say of a package that is not installed; None if the module is one of our own."""
    name = str(error.name).partition(".")[0]
    if name == __package__:
        return None
    if name in PACKAGES:
        return f"needs {name}, which is not installed; pip install {PACKAGES[name]}"
    return f"needs {name}, which is not installed; pip check tells which package requires it"
