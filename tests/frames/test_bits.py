"""The example of docs/bits.md: counts for ResNet-50, and the bytes beside them."""

from __future__ import annotations

import re

import numpy as np
import pytest

from qsparse.registry import build
from qsparse.seeds import Seed
from qsparse.types import Layer


def resnet50():
    """The sizes of ResNet-50's tensors, in the order of its parameters."""
    sizes, width_in = [64 * 3 * 7 * 7, 64, 64], 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            sizes += [width_in * width, width, width]
            sizes += [width * width * 3 * 3, width, width]
            sizes += [width * 4 * width, 4 * width, 4 * width]
            if block == 0:
                sizes += [width_in * 4 * width, 4 * width, 4 * width]
            width_in = 4 * width
    return [*sizes, 2048 * 1000, 1000]


def rows(root):
    """(part, paper bits, wire bytes) of the table."""
    table = (root / "docs" / "bits.md").read_text()
    found = re.findall(r"^\| `(.+?)` \| ([\d,]+) \| [\d.]+ \| ([\d,]+) \| [\d.]+ \|$", table, re.MULTILINE)
    return [(part, *(int(number.replace(",", "")) for number in numbers)) for part, *numbers in found]


def test_the_sizes_are_those_of_resnet50():
    assert len(resnet50()) == 161
    assert sum(resnet50()) == 25_557_032
    assert sum(min(size, 1000) for size in resnet50()) == 99_400


def test_the_papers_counts_follow():
    sizes = resnet50()
    width = {size: (size - 1).bit_length() for size in sizes}
    kept = [min(size, 1000) for size in sizes]
    assert sum(32 * k + k * 32 for k in kept) == 6_361_600
    assert (
        sum(32 + k * (1 + (width[n] if k < n else 0)) for n, k in zip(sizes, kept, strict=True)) == 1_287_552
    )
    assert sum(sizes) + 32 * 161 == 25_562_184
    assert sum(sizes) + 32 * 2 == 25_557_096


def test_the_table_is_what_is_measured(root):
    sizes = resnet50()
    ends = np.cumsum(sizes)
    layout = tuple(
        Layer(str(i), int(end) - size, int(end))
        for i, (size, end) in enumerate(zip(sizes, ends, strict=True))
    )
    x = np.random.default_rng(0).standard_normal(sum(sizes), dtype=np.float32)
    table = rows(root)
    assert len(table) == 5
    for text, bits, wire in table:
        part = build(text, "compressor").bind(layout)
        payload = part.compress(x, Seed(1))
        assert (part.claims.bits(x.size), payload.nbits) == (bits, bits), text
        # Normal numbers may differ in the last digit between releases of NumPy.
        assert len(payload) == pytest.approx(wire, rel=1e-3), text
