"""Tiny files in the formats of the published data sets."""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np

from qsparse.data.download import SOURCES

IDX = SOURCES["mnist"].layouts[0]


BATCHES = SOURCES["cifar10"].layouts[1]


def idx(values: np.ndarray) -> bytes:
    header = struct.pack(f">{1 + values.ndim}I", 0x0800 + values.ndim, *values.shape)
    return header + values.astype(np.uint8).tobytes()


def tiny_mnist(train: int = 30, test: int = 10) -> dict[str, bytes]:
    """The four files of a small set whose label i is i % 10 and whose pixels count up."""
    files = {}
    for images, labels, n in ((IDX[0], IDX[1], train), (IDX[2], IDX[3], test)):
        files[images] = idx((np.arange(n * 784) % 256).reshape(n, 28, 28))
        files[labels] = idx(np.arange(n) % 10)
    return files


def write(folder: Path, files: dict[str, bytes], suffix: str = "") -> Path:
    pack: dict[str, Callable[[bytes], bytes]] = {
        "": bytes,
        ".gz": gzip.compress,
        ".xz": lzma.compress,
        ".bz2": bz2.compress,
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / (name + suffix)).write_bytes(pack[suffix](content))
    return folder


def tiny_cifar(n: int = 20) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Pixels ``(n, 3072)`` and labels of each batch."""
    rng = np.random.default_rng(1)
    return {
        name: (rng.integers(0, 256, (n, 3072), dtype=np.uint8), rng.integers(0, 10, n, dtype=np.uint8))
        for name in BATCHES
    }


def cifar_binary(batches: dict[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, bytes]:
    return {f"{name}.bin": np.column_stack([y, x]).tobytes() for name, (x, y) in batches.items()}


def cifar_files(folder: Path, n: int = 20, suffix: str = ".bin") -> np.ndarray:
    """Files of n pictures each, in the published layout; all their bytes, (6, n, 3073)."""
    records = np.random.default_rng(3).integers(0, 256, (6, n, 3073), dtype=np.uint8)
    records[:, :, 0] %= 10
    folder.mkdir(parents=True, exist_ok=True)
    for name, batch in zip(SOURCES["cifar10"].layouts[1], records, strict=True):
        (folder / f"{name}{suffix}").write_bytes(batch.tobytes())
    return records
