"""Packaging of kron-plugin: the fairseq plugin `kron_plugin` and its commands."""

import re
from pathlib import Path

from setuptools import find_namespace_packages, setup

HERE = Path(__file__).parent
INIT = (HERE / "kron_plugin" / "__init__.py").read_text(encoding="utf-8")
EXPORT = ["onnx>=1.18", "onnxscript>=0.5"]  # of `kron-eval export --format onnx`

setup(
    name="kron-plugin",
    version=re.search(r'__version__ = "(.+)"', INIT)[1],
    description="Kronecker Recurrent Units for fairseq and PyTorch",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.11",
    # kron_plugin/tasks is a link to the folder beside the package, so that `tasks` is never a
    # top-level module when installed.
    packages=find_namespace_packages(include=["kron_plugin", "kron_plugin.*"]),
    # kron_plugin/cuda likewise: `cuda` is a package of NVIDIA's, which CuPy imports.
    package_data={
        "kron_plugin": [
            "py.typed",
            "**/*.c",
            "**/*.cpp",
            "**/*.h",
            "**/*.cu",
            "**/*.cuh",
            "**/*.md",
        ]
    },
    install_requires=[
        "torch>=2.5",
        "numpy>=1.23",
        "fairseq-fixed>=0.12.3.1,<0.13",
        "sentencepiece>=0.2",
        "matplotlib>=3.7",
        "mido>=1.2",
        "pretty_midi>=0.2.11",
        "tabulate>=0.9",
        "tqdm>=4.60",
    ],
    extras_require={
        "cuda12": ["cupy-cuda12x>=14"],
        "cuda13": ["cupy-cuda13x>=14"],
        "export": EXPORT,
        "test": [
            *EXPORT,
            "onnxruntime>=1.20",
            "pytest>=8",
            "pytest-xdist>=3.6",
            "hypothesis>=6.100",
            "ruff>=0.9",
            "mypy>=2.4",
            "nvidia-cuda-nvrtc>=13; sys_platform == 'linux'",
        ],
        "bench": ["linear_operator>=0.5", "pyfastkron>=1.0"],
    },
    entry_points={
        "console_scripts": [
            "kron-data=kron_plugin.cli.data:main",
            "kron-eval=kron_plugin.cli.main:main",
        ]
    },
)
