"""Messages for packages that are not installed (`pip install --no-deps`)."""

from typing import Optional

# From modules to their names for pip. The layers need only the first two; the last are extras.
PACKAGES = {
    "torch": "torch",
    "numpy": "numpy",
    "fairseq": "fairseq-fixed",
    "omegaconf": "fairseq-fixed",  # it installs a version that fits
    "sentencepiece": "sentencepiece",
    "matplotlib": "matplotlib",
    "mido": "mido",
    "pretty_midi": "pretty_midi",
    "tabulate": "tabulate",
    "tqdm": "tqdm",
    "onnx": "onnx",
    "onnx_ir": "onnxscript",
    "onnxscript": "onnxscript",
}


def missing_package(error: ModuleNotFoundError) -> Optional[str]:
    """The message for a missing package; None for a module of our own."""
    name = str(error.name).partition(".")[0]
    if name == __package__:
        return None
    if name in PACKAGES:
        return f"needs {name}, which is not installed; pip install {PACKAGES[name]}"
    return f"needs {name}, which is not installed; pip check tells which package requires it"
