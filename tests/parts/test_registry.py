"""Parts by name and as text."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from typing import ClassVar

import numpy as np
import pytest

from qsparse import registry
from qsparse.compressors import (
    QSGD,
    Blockwise,
    BySize,
    Composed,
    Compressor,
    Float32,
    Policy,
    RandSparse,
    Selector,
    Sign,
    TopK,
    decompress,
)
from qsparse.compressors.blockwise import Piecewise
from qsparse.errors import CompositionError, QsparseError, SettingError, UnknownPart
from qsparse.registry import build, names, parameters, spell
from qsparse.seeds import Seed
from qsparse.testing.laws import EXAMPLES


def compressor(text):
    return build(text, "compressor")


@pytest.mark.parametrize("text", EXAMPLES)
def test_text_and_part_are_the_same(text):
    part = compressor(text)
    assert compressor(spell(part)) == part
    assert spell(compressor(spell(part))) == spell(part)
    assert hash(part) == hash(compressor(text))


def test_text_becomes_the_part_it_says():
    assert compressor("topk(k=3) >> sign") == Composed(TopK(k=3), Sign(norm=1))
    assert compressor(" topk( ratio = 1e-2 )>>qsgd(levels=4,scaled=true) ") == Composed(
        TopK(ratio=0.01), QSGD(levels=4, scaled=True)
    )
    assert compressor("blockwise(sign, size=8)") == Blockwise(Sign(), size=8)
    assert compressor("blockwise(sign, layers=[3, 4])") == Blockwise(Sign(), layers=(3, 4))
    assert compressor("blockwise(sign, bucket=9)") == Blockwise(Sign(), bucket=9)
    assert compressor("bysize(float32, topk(k=2) >> sign, limit=9)") == BySize(
        Float32(), Composed(TopK(k=2), Sign()), 9
    )
    assert compressor("sign(norm=none)") == Sign(norm=None)


def test_only_what_differs_from_the_defaults_is_spelled():
    assert spell(Sign()) == "sign"
    assert spell(QSGD(levels=15, scaled=True)) == "qsgd(scaled=true)"
    assert spell(RandSparse(budget=2.5) >> Sign()) == "randsparse(budget=2.5) >> sign"


def test_policies():
    policy = compressor("conv*: topk(k=10) >> sign; *.bias : float32;*: sign ;")
    assert isinstance(policy, Policy)
    assert [pattern for pattern, _ in policy.rules] == ["conv*", "*.bias", "*"]
    assert spell(policy) == "conv*: topk(k=10) >> sign; *.bias: float32; *: sign"
    assert compressor(spell(policy)) == policy


@pytest.mark.parametrize("text", ["conv*: sign; topk(k=3)", ": sign", "a: sign; : sign"])
def test_a_rule_without_a_pattern_is_refused(text):
    with pytest.raises(SettingError, match="PATTERN"):
        compressor(text)


def test_a_policy_inside_another_part_is_refused():
    policy = compressor("*: sign")
    with pytest.raises(CompositionError, match="stands alone"):
        Blockwise(policy, size=8)
    with pytest.raises(CompositionError, match="stands alone"):
        Policy((("*", policy),))


def test_threads_build_parts_at_once():
    """Collections of garbage between the nodes of a text's tree let other threads go on."""
    program = """
    import gc, sys, threading
    from qsparse.registry import build

    failures = []

    def live():
        try:
            for _ in range(3000):
                build("local-sgd(H=2)", "algorithm")
        except BaseException as failure:
            failures.append(failure)

    build("local-sgd(H=2)", "algorithm")
    gc.callbacks.append(lambda phase, info: sum(range(50)))
    gc.set_threshold(3)
    sys.setswitchinterval(1e-6)
    threads = [threading.Thread(target=live) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("typo", "meant"), [("topK", "topk"), ("sgin", "sign"), ("qsdg(levels=3)", "qsgd")])
def test_an_unknown_name_is_answered_with_the_nearest(typo, meant):
    with pytest.raises(UnknownPart, match=f"did you mean '{meant}'.*known: .*float32"):
        compressor(typo)


def test_a_name_near_nothing_is_answered_with_all():
    with pytest.raises(UnknownPart) as caught:
        compressor("zzz")
    assert "did you mean" not in str(caught.value)
    assert all(name in str(caught.value) for name in names("compressor"))


def test_an_unknown_kind_is_answered_with_the_kinds():
    with pytest.raises(UnknownPart, match="compressor, memory"):
        build("sign", "compresor")


def test_an_unknown_setting_is_answered_with_the_known_ones():
    with pytest.raises(
        SettingError, match=r"no setting 'level': did you mean 'levels'\? it has levels, scaled"
    ):
        compressor("qsgd(level=3)")
    with pytest.raises(SettingError, match="it has none"):
        compressor("float16(bits=3)")
    assert parameters("topk", "compressor") == ["k", "ratio"]


BAD = """
topk
topk()
topk(k=0)
topk(k=-3)
topk(k=2.5)
topk(k=3, ratio=0.1)
topk(k='3')
topk(ratio=0)
topk(ratio=1.5)
topk(ratio=-0.1)
topk(ratio='all')
randk
randk(k=0)
randk(ratio=2)
randsparse(budget=0)
randsparse(budget=-1)
randsparse(budget=1e999)
sign(norm=3)
sign(norm=0)
qsgd(levels=0)
qsgd(levels=32768)
qsgd(levels=1.5)
minmax(levels=0)
minmax(levels=65536)
uniform(bits=0)
uniform(bits=17)
uniform(bits='4')
lowprecision(bits=1)
lowprecision(bits=17)
lowprecision(delta=0)
lowprecision(delta=-1)
lowprecision(delta=1e999)
lowprecision(clip=0)
blockwise
blockwise(sign)
blockwise(sign, size=0)
blockwise(sign, size=2.5)
blockwise(sign, size=true)
blockwise(sign, size=8, layers=true)
blockwise(sign, size=8, bucket=9)
blockwise(sign, layers=true, bucket=9)
blockwise(sign, bucket=0)
blockwise(sign, bucket=2.5)
blockwise(sign, bucket=true)
blockwise(sign, layers=[3, -4])
blockwise(sign, layers='all')
blockwise(3, size=8)
bysize(sign, sign)
bysize(sign, sign, limit=-1)
bysize(sign, 3, limit=1)
float32(1)
float16(2)
bfloat16(x=1)
everything(1)
ternary(1)
policy
policy([])
"""


@pytest.mark.parametrize("text", BAD.split("\n")[1:-1])
def test_bad_settings_are_refused_in_a_sentence(text):
    with pytest.raises(SettingError) as caught:
        compressor(text)
    assert text.partition("(")[0] in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        *("", "   ", "topk(k=3", "topk(k=3))", "topk(k=)", "3", "'sign'", "topk.sign", "topk(k=3) + sign"),
        *("topk(k=3) >> 3", "lambda: 1", "[sign]", "sign()()", "__import__('os')", "topk(k=1+1)", "-sign"),
        *("topk(**{})", "topk(k=3) >>", "topk(k=[x for x in y])"),
    ],
)
def test_text_that_says_nothing_is_refused_and_never_evaluated(text):
    with pytest.raises(QsparseError):
        compressor(text)


@pytest.mark.parametrize(
    "text",
    [
        *(" >> ".join(["sign"] * 3000), "(" * 3000 + "sign" + ")" * 3000, "topk(k=" + "-" * 20_000 + "1)"),
        *("blockwise(" * 60 + "sign" + ", size=9)" * 60, "topk(k=" + "[" * 90 + "]" * 90 + ")"),
        *("a:" * 3000 + "sign", "sign" + "()" * 3000, "a\0b", "\udc80", "topk(k={1: [2], [3]: 4}[0])"),
        *("topk(k={[1]})", "topk(k=" + "9" * 5000 + ")"),
    ],
    ids=range(12),
)
def test_text_that_nests_without_end_is_refused_in_a_short_sentence(text):
    with pytest.raises((SettingError, CompositionError), match="cannot read") as caught:
        compressor(text)
    assert len(str(caught.value)) < 600


def test_stretches_that_no_receiver_would_read_are_refused():
    def nested(deep, text="sign"):
        for _ in range(deep):
            text = f"blockwise({text}, size=2)"
        return text

    x = np.arange(4, dtype=np.float32)
    payload = compressor(nested(8)).compress(x, Seed(0))
    assert decompress(payload, np.empty(4)).shape == (4,)
    for text in (nested(9), f"bysize(sign, {nested(8)}, limit=3)", f"a: sign; *: {nested(8)}"):
        with pytest.raises(SettingError, match="lie 9 deep within each other, and receivers read 8"):
            compressor(text)

    class Strange(Piecewise):
        """Has a constructor of its own."""

        registered_name = "strange"

        def spelling(self):
            return "strange"

        def parts(self, n):
            return [(n, compressor(nested(8)))]

    with pytest.raises(SettingError, match="9 deep"):
        Strange().compress(x, Seed(0))


def test_long_text_that_does_not_nest_is_read():
    assert compressor(f"blockwise(sign, layers={[3] * 5000})").layers == (3,) * 5000
    assert len(compressor("; ".join(f"layer{i}.*: sign" for i in range(500))).rules) == 500
    triggers = " & ".join(["every(2)"] * 40)
    assert build(spell(build(triggers, "trigger")), "trigger") == build(triggers, "trigger")


def test_parts_join_one_way_only():
    for text in ("sign >> topk(k=3)", "sign >> sign", "topk(k=3) >> topk(k=3)", "topk(k=3) & sign"):
        with pytest.raises(CompositionError, match="cannot be joined"):
            compressor(text)
    with pytest.raises(CompositionError, match="one quantizer is enough"):
        compressor("topk(k=3) >> sign >> qsgd")


def test_two_parts_of_one_name_are_refused():
    with pytest.raises(CompositionError, match="two parts are named 'sign'"):

        @registry.register("sign")
        class Other(Selector):
            pass

    assert registry.find("sign", "compressor") is Sign


def test_registering_a_part_twice_is_no_collision():
    assert registry.register("sign")(Sign) is Sign


def test_two_quantizers_of_one_wire_code_are_refused():
    with pytest.raises(CompositionError, match="both have wire code 3"):

        class Other(Sign):
            code: ClassVar[int] = 3


def test_every_part_is_a_frozen_dataclass():
    for name in names("compressor"):
        part = registry.find(name, "compressor")
        assert issubclass(part, Compressor)
        assert part.__dataclass_params__.frozen, name
        assert part.registered_name == name


# --- plug-ins ------------------------------------------------------------------------------------

PLUGIN = '''
from dataclasses import dataclass
import numpy as np
from qsparse.compressors.composed import Kept, Selector, SelectorClaims
from qsparse.registry import register


@register("evens")
@dataclass(frozen=True)
class Evens(Selector):
    """Every second coordinate."""

    def select(self, x, seed):
        where = np.arange(0, x.size, 2)
        return Kept(where, x[::2].copy())

    def claims_for(self, n):
        return SelectorClaims(unbiased=False, gamma=None, omega=None, kept=(n + 1) // 2, index_bits=None)
'''

SCRIPT = """
from qsparse.errors import UnknownPart
from qsparse.registry import build, names, spell
assert "evens" in names("compressor"), names("compressor")
part = build("evens >> sign", "compressor")
assert spell(part) == "evens >> sign"
from qsparse.testing import laws
report = laws.run([part])
assert not report.failures, report.failures[:3]
assert report.checks > 100
try:
    build("even", "compressor")
except UnknownPart as error:
    assert "did you mean 'evens'" in str(error)
print("plugged in")
"""


def test_a_package_adds_parts_by_an_entry_point(tmp_path, root):
    (tmp_path / "evens_for_qsparse.py").write_text(PLUGIN)
    info = tmp_path / "evens_for_qsparse-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: evens-for-qsparse\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[qsparse.parts]\nevens = evens_for_qsparse\n")
    script = f"import sys\nsys.path[:0] = [{str(tmp_path)!r}, {str(root)!r}]\n" + textwrap.dedent(SCRIPT)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "plugged in\n"


BROKEN = """
from qsparse.errors import UnknownPart
from qsparse.registry import build, names
assert "evens" in names("compressor"), names("compressor")
for _ in range(2):
    try:
        build("odds", "compressor")
    except UnknownPart as error:
        for lost in ("aaa = no_such_module_at_all", "zzz = breaks_for_qsparse"):
            assert f"{lost!r} of qsparse.parts could not be loaded (" in str(error), error
        assert "ModuleNotFoundError" in str(error) and "ZeroDivisionError: division by zero" in str(error)
print("others are there")
"""


def test_an_entry_point_that_fails_hides_no_other_and_is_named(tmp_path, root):
    (tmp_path / "evens_for_qsparse.py").write_text(PLUGIN)
    (tmp_path / "breaks_for_qsparse.py").write_text("1 / 0")
    info = tmp_path / "three_for_qsparse-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: three-for-qsparse\nVersion: 1.0\n")
    entries = "aaa = no_such_module_at_all\nmmm = evens_for_qsparse\nzzz = breaks_for_qsparse\n"
    (info / "entry_points.txt").write_text(f"[qsparse.parts]\n{entries}")
    script = f"import sys\nsys.path[:0] = [{str(tmp_path)!r}, {str(root)!r}]\n" + BROKEN
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "others are there\n"


def test_a_compressor_with_the_name_of_a_preset_is_found_inside_one():
    made = build("qsparse-local-sgd(compressor=qsgd(levels=4))", "algorithm")
    assert spell(made.up.compressor) == "qsgd(levels=4)"
