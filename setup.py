"""Packaging. Exact versions stand in constraints.txt; the ranges here only say what the code needs."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "bridge/__init__.py").read_text()).group(1)
README = ROOT / "README.md"

MLFLOW = ["mlflow-skinny", "sqlalchemy", "alembic"]
#: One file each in bridge/metrics/trackers.
TRACKERS = {
    "opentelemetry": ["opentelemetry-sdk", "opentelemetry-exporter-otlp-proto-http"],
    "prometheus": ["prometheus-client"],
    "swanlab": ["swanlab"],
    "trackio": ["trackio"],
}

setup(
    name="bridge-flops",
    version=VERSION,
    description="Exact FLOPs and MFU accounting for Megatron-style training",
    long_description=README.read_text() if README.exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    # The recipes lie beside the package in the repository and inside it when installed.
    packages=[*find_packages(include=["bridge", "bridge.*"]), "bridge.recipes", "bridge.recipes.models"],
    package_dir={"bridge.recipes": "recipes", "bridge.recipes.models": "recipes/models"},
    package_data={
        "bridge": ["py.typed"],
        "bridge.config.sources": ["*.json"],
        "bridge.recipes": ["*.yaml"],
        "bridge.recipes.models": ["*.yaml"],
        "bridge.explorer": ["*.css", "*.js"],
        "bridge.report": ["*.css", "*.js"],
    },
    install_requires=["omegaconf>=2.3", "rich"],  # hydra-core, and with it Megatron-Bridge, wants omegaconf below 2.4
    extras_require={
        # The callback in a training loop that is installed already: whatever torch and Megatron it has stay.
        "callback": ["filelock", "numpy", "wandb"],
        "docs": ["mkdocs-material", "mkdocstrings[python]"],
        "explorer": ["gradio", "plotly"],
        "dashboard": ["wandb-workspaces"],
        "tensorboard": ["tensorboard"],
        # Training loops whose adapters `make test-all` runs where they are installed.
        "loops": ["accelerate", "deepspeed", "lightning", "trl"],
        "mlflow": MLFLOW,
        **TRACKERS,
        "all-trackers": ["tensorboard", *MLFLOW, *(package for packages in TRACKERS.values() for package in packages)],
        "train": [
            "torch>=2.6",
            "megatron-core>=0.16",
            "filelock",
            "numpy",
            "wandb",
            "tokenizers",
            "pyarrow",
            "pillow",
            "nvidia-ml-py",
        ],
        "test": [
            "pytest",
            "pytest-xdist",
            "hypothesis",
            "jsonschema",
            "transformers",
            "peft",
            "accelerate",
            "lightning",
            "torchdata",
            "diffusers",
            "einops",
            "kubeflow-trainer-api",
            "selenium",
            "ruff",
            "mypy",
            "types-PyYAML",
        ],
    },
    # iproute2 ships a `bridge` too.
    entry_points={"console_scripts": ["bridge = bridge.cli.main:main", "bridge-flops = bridge.cli.main:main"]},
)
