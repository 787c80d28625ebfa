"""The precision that a tolerance asks for: the fewest bits that keep to it, in expectation."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qsparse.compressors import Float32, LowPrecision, Sign, TopK, decompress
from qsparse.errors import CompositionError, Imprecise, NotFinite, SettingError
from qsparse.seeds import Seed
from qsparse.testing.laws import examples

held = settings(derandomize=True, deadline=None, max_examples=60, database=None)
vectors = st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=12)
gaussian = np.random.default_rng(9).standard_normal(500)


def expected(x, bits):
    """E‖Q(x) − x‖² from the definition: the grid ends at ‖x‖∞ as float32 holds it."""
    half = 1 << (bits - 1)
    end = float(np.float32(np.max(np.abs(x), initial=0)))
    if end == 0:
        return float(np.sum(np.asarray(x, np.float64) ** 2))
    return oracles.expected_error(x, end / (half - 1), -half, half - 1)


def losses(part, x, seeds):
    """‖Q(x) − x‖² by seed."""
    out = np.empty(x.size)
    return [
        float(np.sum((decompress(part.compress(x, Seed(3, step=seed)), out) - x) ** 2))
        for seed in range(seeds)
    ]


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("bits", [2, 3, 5, 9])
def test_the_mean_over_seeds_is_the_expectation(bits, kind):
    x = gaussian[:40].astype(kind)
    found = np.array(losses(LowPrecision(bits), x, 1500))
    assert abs(found.mean() - expected(x, bits)) < 5 * found.std() / math.sqrt(found.size)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@held
@given(values=vectors, share=st.floats(1e-9, 1), floor=st.integers(2, 16))
def test_it_is_the_least_width_that_keeps_to_the_tolerance(kind, values, share, floor):
    x = np.array(values, kind)
    tolerance = share * float(np.sum(x.astype(np.float64) ** 2))
    enough = [bits for bits in range(floor, 17) if expected(x, bits) <= tolerance]
    wanted = LowPrecision(enough[0]) if enough else Float32()
    assert LowPrecision(floor).within(x, tolerance) == wanted


@pytest.mark.parametrize("bits", range(2, 16))
def test_one_bit_less_is_too_few(bits):
    x = gaussian.astype(np.float32)
    tolerance = expected(x, bits) * (1 + 1e-9)
    assert LowPrecision(2).within(x, tolerance) == LowPrecision(bits)
    assert LowPrecision(2).within(x, expected(x, bits) * (1 - 1e-9)) == LowPrecision(bits + 1)
    sufficient = 1 + math.ceil(math.log2(1 + np.max(np.abs(x)) / 2 * math.sqrt(x.size / tolerance)))
    assert bits <= sufficient


def test_where_16_bits_are_too_few_it_is_float32():
    x = gaussian.astype(np.float32)
    assert LowPrecision().within(x, 0) == Float32()
    assert LowPrecision().within(x, expected(x, 16) * (1 - 1e-9)) == Float32()
    assert LowPrecision().within(x, expected(x, 16) * (1 + 1e-9)) == LowPrecision(16)


def test_a_coarse_grid_may_hold_what_a_fine_one_does_not():
    # 1 is a point of the grids that end at 3 = 3δ and at 3 = 15δ, not of those that end at 7δ or 32767δ.
    x = np.array([3, 1, -2, 0], np.float32)
    assert expected(x, 3) == 0 < expected(x, 4)
    assert LowPrecision(2).within(x, 0) == LowPrecision(3)
    assert LowPrecision(4).within(x, 0) == LowPrecision(5)
    assert LowPrecision(16).within(x, 0) == Float32()


@pytest.mark.parametrize("bits", [2, 8, 16])
def test_where_nothing_is_lost_the_floor_is_enough(bits):
    part = LowPrecision(bits)
    for tolerance in (0, 0.0, 1e-30, math.inf):
        assert part.within(np.zeros(5, np.float32), tolerance) == part
        assert part.within(np.empty(0, np.float64), tolerance) == part
        assert part.within(np.array([-2.5], np.float32), tolerance) == part
    assert part.within(gaussian, math.inf) == part
    assert part.within(gaussian, 1e9) == part


def test_the_end_of_the_grid_is_the_one_on_the_wire():
    # Just above 1: the end is sent as 1, and the value is off by what float32 drops, in every width.
    x = np.array([1 + 2.0**-30, 0.0])
    assert LowPrecision(2).within(x, 2.0**-60) == LowPrecision(2)
    assert losses(LowPrecision(2), x, 1) == [2.0**-60]
    assert LowPrecision(2).within(x, 2.0**-61) == Float32()
    # What float32 takes for zero is sent as zero.
    x = np.array([1e-60, -1e-60])
    assert LowPrecision().within(x, 2e-120) == LowPrecision()
    assert LowPrecision().within(x, 1e-120) == Float32()


def test_the_vector_is_left_as_it_is():
    x = gaussian.astype(np.float32)
    before = x.tobytes()
    wanted = LowPrecision(2).within(x, 1.0)
    assert x.tobytes() == before
    x.flags.writeable = False
    assert LowPrecision(2).within(x, 1.0) == wanted


@pytest.mark.parametrize("tolerance", [-1e-300, -1, -math.inf, math.nan])
def test_a_tolerance_that_is_none_is_refused(tolerance):
    with pytest.raises(
        SettingError, match=r"^lowprecision: a tolerance must be at least 0, not -?(\d|inf|nan)"
    ):
        LowPrecision().within(gaussian, tolerance)


def test_what_cannot_be_sent_is_refused():
    with pytest.raises(NotFinite, match="element 1"):
        LowPrecision().within(np.array([0, np.nan]), 1.0)
    with pytest.raises(NotFinite, match="element 0"):
        LowPrecision().within(np.array([1e39, 0]), 1.0)
    with pytest.raises(SettingError, match="int64 array"):
        LowPrecision().within(np.arange(3), 1.0)


@pytest.mark.parametrize("part", [LowPrecision(2, delta=0.03), LowPrecision(2, clip=0.8)], ids=str)
@held
@given(values=vectors, share=st.floats(1e-9, 1))
def test_with_clipping_it_is_the_least_width_or_none(part, values, share):
    x = np.array(values, np.float32)
    tolerance = share * float(np.sum(x.astype(np.float64) ** 2))
    most = part.clip * float(np.max(np.abs(x)))
    enough = []
    for bits in range(2, 17):
        half = 1 << (bits - 1)
        end = float(np.float32(most if part.delta is None else part.delta * (half - 1)))
        low = -half if part.clip == 1 else 1 - half
        lost = oracles.expected_error(x, end / (half - 1), low, half - 1) if end else 0.0
        if lost <= tolerance:
            enough.append(bits)
    if enough or tolerance == 0:
        wanted = replace(part, bits=enough[0]) if enough else Float32()
        assert part.within(x, tolerance) == wanted
    else:
        with pytest.raises(Imprecise, match=r"^lowprecision\(bits=2, .*E‖Q\(x\) − x‖² is .* with 16 bits"):
            part.within(x, tolerance)


@pytest.mark.parametrize("clip", [0, -0.5, 1.1, math.nan])
def test_a_clip_that_is_no_part_is_refused(clip):
    with pytest.raises(SettingError, match="clip must be above 0 and at most 1"):
        LowPrecision(clip=clip)


def test_a_grid_has_one_end():
    with pytest.raises(SettingError, match="give delta or clip, not both"):
        LowPrecision(delta=0.5, clip=0.9)
    x = gaussian.astype(np.float32)
    out = decompress(LowPrecision(8, clip=0.25).compress(x, Seed(0)), np.empty_like(x))
    end = np.float32(0.25 * np.max(np.abs(x)))
    assert out.max() == end
    assert out.min() == -end
    out = decompress(LowPrecision(8, delta=0.01).compress(x, Seed(0)), np.empty_like(x))
    assert (out.min(), out.max()) == (np.float32(-1.28), np.float32(1.27))


def test_a_grid_that_float32_does_not_hold_is_not_tried():
    x = np.array([3e38, 1e36], np.float32)
    # 2¹⁵·δ is beyond float32, and with the bits that fit the largest value is not reached.
    with pytest.raises(Imprecise, match="with 13 bits"):
        LowPrecision(2, delta=6e34).within(x, 1.0)
    with pytest.raises(NotFinite, match="beyond float32"):
        LowPrecision(16, delta=6e34).within(x, 1.0)


def test_other_compressors_have_one_precision_and_say_so():
    for part in examples():
        if not isinstance(part, LowPrecision | Float32):
            with pytest.raises(CompositionError, match="use lowprecision"):
                part.within(gaussian, 1.0)
    with pytest.raises(CompositionError, match=r"^topk\(k=3\) >> sign: this compressor has one precision"):
        (TopK(k=3) >> Sign()).within(gaussian, 1.0)
