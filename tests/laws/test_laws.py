"""The laws hold for every example of every kind, and catch compressors that break them."""

from __future__ import annotations

import re
import sys
import types
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest

from qsparse.compressors import Claims, Compressor, Quantizer, RandK, Sign, TopK, decompress
from qsparse.compressors.composed import QuantizerClaims, Section, copy_of
from qsparse.errors import CompositionError, Imprecise, SettingError
from qsparse.registry import build, kinds, names
from qsparse.testing import laws, parts
from qsparse.testing.vectors import REFUSED, hostile

NINE = {"nine": hostile()["nine"]}


@pytest.mark.parametrize("text", laws.EXAMPLES)
def test_the_example_keeps_every_law(text):
    """Of compressors; those of other kinds are tried in `test_part_laws`."""
    report = laws.run([build(text, "compressor")])
    assert not report.failures, "\n".join(map(str, report.failures[:20]))
    assert report.vectors == len(hostile())
    assert report.checks > 210


def test_tiny_blocks_in_tiny_blocks_keep_every_law():
    """Ragged at every length; on short vectors only, as a long one has ten thousand of them."""
    part = build("blockwise(blockwise(uniform, size=5), size=16)", "compressor")
    short = {name: x for name, x in hostile().items() if x.size < 1000}
    report = laws.run([part], short)
    assert not report.failures, "\n".join(map(str, report.failures[:20]))
    assert report.vectors == len(short) > 15


def test_the_report_counts_what_was_checked():
    """Each law applies to one of these, and a law that applies nowhere would be found."""
    tried = ("float32", "sign", "qsgd", "lowprecision", "randsparse", "topk(k=3)", "randk(k=3)")
    vectors = {name: hostile()[name] for name in ("nine", "large", *REFUSED)}
    report = laws.run([build(text, "compressor") for text in tried], vectors)
    assert (report.parts, report.vectors) == (len(tried), len(vectors))
    assert report.checks == sum(report.per_law.values())
    assert set(report.per_law) == {("compressor", law) for law in laws.LAWS["compressor"]}
    assert min(report.per_law.values()) > 0
    assert not report.failures


def test_without_parts_the_examples_of_all_kinds_are_tried(monkeypatch):
    tried = []
    monkeypatch.setattr(laws, "check", lambda part, vectors: tried.append(part) or [])
    report = laws.run(vectors={})
    assert report.parts == len(tried) == len(laws.EXAMPLES) + sum(map(len, parts.EXAMPLES.values()))
    assert set(report.per_law) == {(kind, law) for kind in kinds() for law in laws.LAWS[kind]}


def test_every_registered_compressor_occurs_in_an_example():
    words = set(re.findall(r"\w+", " ".join(text for text in laws.EXAMPLES if ":" not in text)))
    # A policy is written with colons and never by its name.
    words |= {"policy"} if any(":" in text for text in laws.EXAMPLES) else set()
    assert set(names("compressor")) <= words


def test_every_hostile_vector_reaches_the_laws():
    found = {check.vector: check.law for check in laws.check(Sign()) if check.vector != laws.NOWHERE}
    assert set(found) == set(hostile())
    assert {name for name, law in found.items() if law == "refusal"} == set(REFUSED)


# --- broken parts --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wrapped(Compressor):
    """Does what `inner` does; each subclass spoils one thing."""

    inner: ClassVar[Compressor] = TopK(k=3)
    registered_name: ClassVar[str] = "wrapped"
    codec: ClassVar[int] = 1

    @property
    def claims(self):
        return self.inner.claims

    def write(self, x, seed, out):
        return self.inner.limited(x.size).write(x, seed, out)


def claiming(part, **other):
    """A part like ``part`` that claims something else."""

    class Claiming(Wrapped):
        inner = part

        @property
        def claims(self):
            return replace(part.claims, **other)

    return Claiming()


def broken(part, vectors=None):
    """The laws that a part breaks, but for the text of a part that nobody registered."""
    return {check.law for check in laws.check(part, vectors) if check.reason is not None} - {"text"}


def test_an_honest_wrapper_breaks_nothing():
    class TenthOfAll(Wrapped):
        inner = TopK(ratio=0.1)

    assert broken(TenthOfAll()) == set()


def test_a_wrong_claim_is_caught_by_its_law():
    tenth = TopK(ratio=0.1)
    assert broken(claiming(tenth, unbiased=True)) == {"unbiasedness"}
    assert broken(claiming(tenth, gamma=lambda n: 0.99)) == {"contraction"}
    assert broken(claiming(tenth, omega=lambda n: 1e-4)) == {"variance"}
    assert broken(claiming(tenth, bits=lambda n: 1 + tenth.claims.bits(n))) == {"bits"}
    assert broken(claiming(build("float16", "compressor"), homogeneous=True)) == {"homogeneity"}
    assert broken(claiming(RandK(ratio=0.1), gamma=lambda n: 0.5)) == {"contraction"}
    assert broken(claiming(build("qsgd(levels=2)", "compressor"), omega=lambda n: 0.05)) == {"variance"}
    scaled = build("qsgd(levels=2, scaled=true)", "compressor")
    assert broken(claiming(scaled, unbiased=True)) == {"unbiasedness"}


def test_a_bias_of_a_long_vector_is_caught():
    part = claiming(build("qsgd(levels=4, scaled=true)", "compressor"), unbiased=True)
    assert broken(part, {"large": hostile()["large"]}) == {"unbiasedness"}


def test_a_part_that_swallows_nan_is_caught():
    class Swallowing(Wrapped):
        def compress(self, x, seed):
            return super().compress(np.nan_to_num(x), seed)

    assert broken(Swallowing()) == {"refusal"}


def test_a_part_that_remembers_its_last_call_is_caught():
    calls = []

    class Remembering(Wrapped):
        def write(self, x, seed, out):
            calls.append(len(calls))
            return RandK(ratio=0.5).write(x, seed.child(len(calls)), out)

    assert "determinism" in broken(Remembering())


def test_a_part_that_draws_from_a_global_generator_is_caught():
    class Global(Wrapped):
        inner = RandK(ratio=0.5)

        def write(self, x, seed, out):
            return self.inner.write(x, seed.child(int(np.random.randint(1000))), out)

    assert "determinism" in broken(Global())


def test_a_part_that_ignores_step_and_rank_is_caught():
    class Stuck(Wrapped):
        def write(self, x, seed, out):
            return RandK(ratio=0.5).write(x, seed.at(rank=0), out)

    assert "seeding" in broken(Stuck(), {"large": hostile()["large"]})


def test_a_part_that_decodes_with_its_own_settings_is_caught():
    class Doubling(Wrapped):
        def decompress(self, payload, out):
            decompress(payload, out)
            out *= 2
            return out

    assert broken(Doubling()) == {"self-described"}


def test_a_part_that_changes_its_input_is_caught():
    class Changing(Wrapped):
        def write(self, x, seed, out):
            nbits = super().write(x, seed, out)
            x[:1] = 5
            return nbits

    assert "input" in broken(Changing())


def test_a_part_that_does_not_keep_to_a_tolerance_is_caught():
    coarse = build("lowprecision(bits=2)", "compressor")

    class Deaf(Wrapped):
        inner = coarse

        def within(self, x, tolerance):
            return coarse

    class Dear(Wrapped):
        inner = coarse

        def within(self, x, tolerance):
            return build("lowprecision" if tolerance else "lowprecision(bits=2)", "compressor")

    failures = [check for check in laws.check(Deaf(), NINE) if check.reason and check.law != "text"]
    assert [check.law for check in failures] == ["within"]
    assert "the mean loss is" in failures[0].reason
    decode_grid = {"on the grid": np.array([1, -1, 0, 1], np.float32)}
    (failure,) = [check for check in laws.check(Dear(), decode_grid) if check.law == "within"]
    assert failure.reason == "0 of ‖x‖² costs 40 bits, and a larger tolerance 64"


def test_a_part_that_refuses_a_tolerance_without_need_is_caught():
    fixed = build("lowprecision(bits=5, delta=0.125)", "compressor")

    def shy(inner, exception=Imprecise):
        class Shy(Wrapped):
            def within(self, x, tolerance):
                raise exception("too little for me")

        Shy.inner = inner
        return [check.reason for check in laws.check(Shy(), NINE) if check.law == "within" and check.reason]

    assert any(reason.startswith("refuses 0.25 of ‖x‖², and loses ") for reason in shy(fixed))
    unsaid = "refuses a tolerance, and does not claim that it may: too little for me"
    assert set(shy(build("lowprecision", "compressor"))) == {unsaid}
    assert set(shy(fixed, CompositionError)) == {"finds no precision: too little for me"}


@pytest.fixture
def free_code():
    """A wire code that is given back after the test."""
    from qsparse.compressors import composed

    yield 200
    composed._quantizers.pop(200, None)


def test_a_quantizer_that_wastes_bytes_or_trusts_them_is_caught(free_code):
    @dataclass(frozen=True)
    class Wasteful(Quantizer):
        registered_name: ClassVar[str] = "wasteful"
        code: ClassVar[int] = free_code

        def encode(self, values, seed):
            return Section([b"\1", values.astype("<f8").tobytes()], 32 * values.size)

        @staticmethod
        def decode(section, k):
            values = np.zeros(k)
            for _ in range(section.u8()):
                raw = bytes(section.rest[: 8 * k])
                values = np.frombuffer(raw, "<f8")
            section.take(8 * k)
            return copy_of(values)

        def claims_for(self, k):
            return QuantizerClaims(unbiased=True, homogeneous=True, gamma=1.0, omega=0.0, bits=32 * k)

    assert broken(Wasteful()) == {"bits", "forgery"}


def test_settings_that_fit_no_vector_are_reported():
    part = build("blockwise(sign, layers=[1000, 77])", "compressor")
    failures = [check for check in laws.check(part) if check.reason]
    assert [check.law for check in failures] == ["fit"]
    assert "1077 coordinates together" in failures[0].reason
    assert laws.run([part]).failures == failures


def test_a_part_with_failures_does_not_stop_the_others():
    worse = claiming(TopK(ratio=0.1), bits=lambda n: 0, unbiased=True)
    report = laws.run([worse, Sign()], {"nine": hostile()["nine"]})
    assert report.parts == 2
    assert {check.law for check in report.failures} == {"text", "bits", "unbiasedness"}
    assert report.checks > 2 * len(laws.LAWS["compressor"]) - 13
    assert all(check.vector == "nine" and check.reason for check in report.failures)


def test_claims_are_all_there():
    assert isinstance(Wrapped().claims, Claims)


# --- loading strangers' parts --------------------------------------------------------------------


@pytest.fixture
def stranger(monkeypatch):
    module = types.ModuleType("stranger_parts")
    module.Made = Sign
    module.made = Sign(norm=2)
    module.several = [Sign(), TopK(k=3)]
    module.Needy = TopK
    module.number = 3
    module.nothing = []
    monkeypatch.setitem(sys.modules, "stranger_parts", module)
    return module


def test_load_takes_a_class_an_instance_or_a_list(stranger):
    assert laws.load("stranger_parts:Made") == [Sign()]
    assert laws.load("stranger_parts:made") == [Sign(norm=2)]
    assert laws.load("stranger_parts:several") == [Sign(), TopK(k=3)]


@pytest.mark.parametrize(
    "where", ["sign", "stranger_parts:", ":x", "stranger_parts:absent", "no_such_module_here:x"]
)
def test_load_says_what_is_not_there(stranger, where):
    with pytest.raises(SettingError, match="cannot"):
        laws.load(where)


def test_load_refuses_what_is_no_part(stranger):
    for name in ("number", "Needy", "nothing"):
        with pytest.raises(SettingError, match="stranger_parts"):
            laws.load(f"stranger_parts:{name}")
