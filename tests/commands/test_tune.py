"""The tuner: cheapest settings for a contraction, by the bounds and on a vector."""

from __future__ import annotations

import functools
import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from qsparse.cli.commands import qsparse
from qsparse.compressors import Compressor, decompress
from qsparse.errors import NotFinite, SettingError
from qsparse.link import Link, Sender
from qsparse.memory import ErrorFeedback
from qsparse.planning import whole
from qsparse.planning.gaps import Loss, largest_h
from qsparse.registry import build, spell
from qsparse.seeds import Seed
from qsparse.tuning import DRAWS, MARGIN, Family, Tuned, _is_random, families, orders_of_h, tune

#: Every s up to 39, not only 2ᵇ − 1, and beyond that 2ᵇ − 1.
LEVELS = (*range(1, 40), *(2**b - 1 for b in range(6, 16)))
#: Selector, quantizer without its settings, name of the setting, its values.
GRID = [
    ("", "float32", None, ()),
    ("", "sign", None, ()),
    ("", "qsgd(levels={})", "s", LEVELS),
    ("", "qsgd(levels={}, scaled=true)", "s", LEVELS),
    ("topk(k={k})", "", None, ()),
    ("topk(k={k}) >> ", "sign", None, ()),
    ("topk(k={k}) >> ", "ternary", None, ()),
    ("topk(k={k}) >> ", "qsgd(levels={})", "s", LEVELS),
    ("topk(k={k}) >> ", "qsgd(levels={}, scaled=true)", "s", LEVELS),
    ("randk(k={k}) >> ", "minmax(levels={})", "s", LEVELS),
    ("topk(k={k}) >> ", "uniform(bits={})", "s", range(1, 17)),
    ("randk(k={k}) >> ", "lowprecision(bits={})", "s", range(2, 17)),
]


def family_of(selector: str, quantizer: str, s: str | None) -> str:
    """The name of the family that a line of the grid spells."""
    front = selector.replace("k={k}", "k")
    return front + (quantizer.replace("levels={}", "s").replace("bits={}", "s") if s else quantizer)


def row_of(rows: list[Tuned], selector: str, quantizer: str, s: str | None) -> Tuned:
    """The row of the family that a line of the grid spells."""
    (row,) = [row for row in rows if row.family == family_of(selector, quantizer, s)]
    return row


Among = Callable[[Callable[[Family], bool]], None]


@pytest.fixture
def among(monkeypatch: pytest.MonkeyPatch) -> Among:
    """Let some families be searched only: each is by itself, and the others are of no interest."""

    def choose(wanted: Callable[[Family], bool]) -> None:
        found = [family for family in families() if wanted(family)]
        monkeypatch.setattr("qsparse.tuning.families", lambda: found)

    return choose


def is_certain(family: Family) -> bool:
    """Whether its members draw nothing."""
    return not _is_random(family)


def members(n: int, selector: str, quantizer: str, values: range) -> list[tuple[Compressor, int]]:
    """All members of a family with k < n, and their bits."""
    found = []
    for value in values or [0]:
        for k in range(1, n) if selector else [1]:
            part = build((selector.format(k=k)) + quantizer.format(value), "compressor")
            bits = part.claims.bits(n)
            assert bits is not None
            found.append((part, bits))
    return found


@pytest.mark.parametrize("line", GRID, ids=lambda line: line[0] + line[1])
@pytest.mark.parametrize("n", [2, 9, 150])
def test_bound_agrees_with_brute_force(
    line: tuple[str, str, str | None, range], n: int, among: Among
) -> None:
    selector, quantizer, s, values = line
    among(lambda family: family.name == family_of(selector, quantizer, s))
    known = [(part.claims.gamma(n) or 0.0, bits) for part, bits in members(n, selector, quantizer, values)]
    reached = 0
    # From below 1/n to beyond what a family has, peaks included.
    for gamma in [*np.geomspace(1 / n / 2, 1, 12), max(gamma for gamma, _ in known) or 1.0]:
        fewest = min((bits for claimed, bits in known if claimed >= gamma), default=None)
        row = row_of(tune(float(gamma), n), selector, quantizer, s)
        if fewest is None:
            assert row.compressor is None
            assert row.reason
            continue
        assert row.bits == fewest, gamma
        assert row.compressor is not None
        claims = row.compressor.claims
        assert (claims.bits(n), claims.gamma(n)) == (row.bits, row.gamma)
        assert row.gamma is not None
        assert row.gamma >= gamma
        reached += 1
    assert reached


def vectors(n: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {
        "gaussian": rng.standard_normal(n, dtype=np.float32),
        "heavy": rng.standard_t(1.5, n).astype(np.float32),
        "one large": np.r_[np.float32(10), rng.choice([-1, 1], n - 1)].astype(np.float32),
    }


def measured(part: Compressor, x: np.ndarray, seeds: range) -> np.ndarray:
    """1 − ‖x − C(x)‖²/‖x‖² of single draws, in NumPy."""
    exact = x.astype(np.float64)
    out = np.empty(x.size, np.float32)
    lost = []
    for number in seeds:
        decompress(part.compress(x, Seed(0, step=number, use="up")), out)
        lost.append(np.sum((exact - out) ** 2) / np.sum(exact**2))
    return 1 - np.array(lost)


#: Lines as those of the grid, without chance.
CERTAIN = [
    ("topk(k={k})", "", None, range(0)),
    ("topk(k={k}) >> ", "sign", None, range(0)),
    ("topk(k={k}) >> ", "sign(norm=2)", None, range(0)),
    ("topk(k={k}) >> ", "bfloat16", None, range(0)),
    ("topk(k={k}) >> ", "uniform(bits={})", "s", range(1, 9)),
    ("", "sign", None, range(0)),
    ("", "uniform(bits={})", "s", range(1, 9)),
]


@functools.cache
def measured_once(kind: str) -> list[list[tuple[float, int]]]:
    """What every member of these families keeps of a vector, and its bits; the same for each γ."""
    x = vectors(400)[kind]
    return [
        [
            (float(measured(part, x, range(1))[0]), bits)
            for part, bits in members(x.size, selector, quantizer, values)
        ]
        for selector, quantizer, _, values in CERTAIN
    ]


@pytest.mark.parametrize("kind", ["gaussian", "heavy", "one large"])
@pytest.mark.parametrize("gamma", [0.05, 0.3, 0.6])
def test_probe_agrees_with_brute_force(kind: str, gamma: float, among: Among) -> None:
    """Without chance exactly; k is beyond what is looked at one by one."""
    among(is_certain)
    rows = tune(gamma, probe=vectors(400)[kind])
    for (selector, quantizer, s, _), known in zip(CERTAIN, measured_once(kind), strict=True):
        fewest = min((bits for kept, bits in known if kept >= gamma), default=None)
        row = row_of(rows, selector, quantizer, s)
        assert row.bits == fewest, (row, spell(row.compressor) if row.compressor else "")
        assert (fewest is None) == bool(row.reason)
        assert row.draws == (0 if fewest is None else 1)


@pytest.mark.parametrize("kind", ["gaussian", "one large"])
def test_probe_of_random_parts_is_near_brute_force(kind: str, among: Among) -> None:
    """The same draws, the same margin, over all k: as cheap but for the resolution and hurried looks."""
    x = vectors(120)[kind]
    gamma = 0.3
    lines = [("topk(k={k}) >> ", "qsgd(levels={})", "s"), ("randk(k={k}) >> ", "sign", None)]
    among(lambda family: family.name in [family_of(*line) for line in lines])
    rows = tune(gamma, probe=x)
    for selector, quantizer, s in lines:
        fewest = math.inf
        for part, bits in members(x.size, selector, quantizer, [1, 3, 7, 15, 31] if s else range(0)):
            draws = measured(part, x, range(DRAWS))
            if draws.mean() - MARGIN * draws.std(ddof=1) / np.sqrt(DRAWS) >= gamma:
                fewest = min(fewest, bits)
        row = row_of(rows, selector, quantizer, s)
        assert row.bits is not None
        assert fewest <= row.bits <= 1.03 * fewest
        assert row.draws == DRAWS


def test_a_jump_too_far_is_taken_back(among: Among) -> None:
    """Noise may carry a jump beyond the smallest k; the search goes back, to the resolution."""
    x = vectors(1500)["gaussian"]
    among(lambda family: family.name == "randk(k) >> sign")
    row = row_of(tune(0.3, probe=x), "randk(k={k}) >> ", "sign", None)
    costs = sorted(members(x.size, "randk(k={k}) >> ", "sign", range(0)), key=lambda cost: cost[1])
    for part, fewest in costs:  # noqa: B007
        draws = measured(part, x, range(DRAWS))
        if draws.mean() - MARGIN * draws.std(ddof=1) / np.sqrt(DRAWS) >= 0.3:
            break
    assert row.bits is not None
    assert fewest <= row.bits <= 1.01 * fewest


@pytest.mark.parametrize("kind", ["gaussian", "heavy"])
def test_what_is_found_reaches_gamma_with_fresh_seeds(kind: str) -> None:
    x = vectors(20_000)[kind]
    gamma = 0.2
    rows = [row for row in tune(gamma, probe=x) if not row.reason]
    assert len(rows) > 15
    for row in rows:
        assert row.compressor is not None
        fresh = measured(row.compressor, x, range(1000, 1000 + 2 * DRAWS))
        slack = 4 * fresh.std(ddof=1) / np.sqrt(fresh.size)
        assert fresh.mean() >= gamma - slack - 1e-6, row.family
        assert row.gamma is not None
        assert row.gamma >= gamma
        payloads = [row.compressor.compress(x, Seed(0, step=d, use="up")) for d in range(row.draws)]
        assert row.wire_bytes == np.mean([len(payload) for payload in payloads])
        assert payloads[0].nbits == row.bits


def test_by_hand() -> None:
    """n = 1000, γ = 0.1: k = 100 without loss; top-k sends 100·(32 + 10), rand-k 64 and 100·32.

    Scaled QSGD (Lemma 2) needs k/(1 + k/s²) ≥ 100: with s = 31 that is k = 112 (111.62), and
    32 + 112·(1 + 5 + 10) bits; s = 63 needs 103 and 32 + 103·17 = 1783; s = 127: 101, 32 + 101·18 = 1850.
    """
    rows = {row.family: row for row in tune(0.1, 1000)}
    assert (rows["topk(k)"].k, rows["topk(k)"].bits) == (100, 4200)
    assert (rows["randk(k)"].k, rows["randk(k)"].bits) == (100, 3264)
    row = rows["topk(k) >> qsgd(s, scaled=true)"]
    assert (row.s, row.k, row.bits) == (63, 103, 1783)
    assert spell(row.compressor) == "topk(k=103) >> qsgd(levels=63, scaled=true)"
    assert (rows["float32"].bits, rows["float32"].gamma) == (32_000, 1.0)


def test_top_k_signs_by_hand() -> None:
    """‖v‖₁²/(k‖x‖²) is 100/199 for k = 1 and (9 + k)²/(199k) else: it falls first, then rises."""
    x = np.array([10] + [1] * 99, np.float32)
    rows = {row.family: row for row in tune(0.5, probe=x)}
    assert rows["topk(k) >> sign"].k == 1
    rows = {row.family: row for row in tune(0.51, probe=x)}
    assert rows["topk(k) >> sign"].k == 83  # 92² = 8464 ≥ 0.51·199·83 = 8423.7; 91² = 8281 < 8322.2


@pytest.mark.parametrize("probed", [False, True])
def test_more_contraction_never_costs_less(probed: bool, among: Among) -> None:
    x = vectors(60)["heavy"] if probed else None
    best = 0.0
    before: dict[str, float] = {}
    if probed:
        # Of the families that draw, which take most of the time, only the order of the rows is looked at.
        for gamma in (0.01, 0.3, 0.9):
            in_order(tune(gamma, 60, x))
        among(is_certain)
    for gamma in np.linspace(0.01, 1, 25):
        rows = tune(float(gamma), 60, x)
        # Draws are noise, and so is a little of k.
        bits = {row.family: row.bits or math.inf for row in rows if not probed or row.draws <= 1}
        if before:
            assert all(bits.get(family, math.inf) >= least for family, least in before.items())
        before = bits
        assert rows[0].bits is not None
        if not probed:
            assert rows[0].bits >= best
            best = rows[0].bits
        in_order(rows)


def in_order(rows: list[Tuned]) -> None:
    """Fewest bits first, then those that reach nothing."""
    reached = [row.bits for row in rows if row.bits is not None]
    assert reached == sorted(reached)
    assert all(row.reason for row in rows[len(reached) :])


@pytest.mark.parametrize("line", [GRID[4], GRID[7], GRID[9], GRID[1]], ids=lambda line: line[0] + line[1])
@pytest.mark.parametrize("down", [None, "topk(ratio=0.1)"])
def test_the_fewest_bytes_agree_with_brute_force(
    line: tuple[str, str, str | None, range], down: str | None, among: Among
) -> None:
    selector, quantizer, s, values = line
    row = build("qsparse-local-sgd", "algorithm")
    row = row if down is None else row.with_(down=build(down, "compressor"))
    n, values = 60, [v for v in values if v < 16 or v + 1 & v == 0]

    def link(part: Compressor) -> float:
        return whole(row.with_(compressor=part), n, 3).link

    among(lambda family: family.name == family_of(selector, quantizer, s))
    known = [(part.claims.gamma(n) or 0.0, part) for part, _ in members(n, selector, quantizer, values)]
    reached = 0
    for gamma in np.geomspace(1 / n, 1, 6):
        fewest = min((link(part) for claimed, part in known if claimed >= gamma), default=None)
        (found,) = tune(float(gamma), n, price=link)
        assert found.price == fewest, (gamma, found)
        reached += fewest is not None
    assert reached or quantizer == "sign"


def test_every_family_is_named_once_and_spelled_so_that_it_builds() -> None:
    named = [family.name for family in families()]
    assert len(set(named)) == len(named)
    for row in tune(0.02, 5000):
        if row.compressor is not None:
            assert build(spell(row.compressor), "compressor") == row.compressor


def test_a_long_vector_takes_few_looks() -> None:
    rows = {row.family: row for row in tune(0.01, 25_557_032)}
    assert rows["topk(k)"].k == 255_571
    row = rows["topk(k) >> qsgd(s)"]
    k, s = row.k, row.s
    assert k is not None
    assert s is not None
    assert (1 - k / s**2) * k / 25_557_032 >= 0.01 > (1 - (k - 1) / s**2) * (k - 1) / 25_557_032
    assert row.bits == 32 + k * (1 + s.bit_length() + 25)


def test_orders_of_h() -> None:
    assert orders_of_h(0.01, 10_000, 4, 4) == pytest.approx((0.01 * 10 / 8, 0.1 * math.sqrt(10 / 8)))


@pytest.mark.parametrize("gamma", [0.001, 0.3, 1.0])
def test_at_the_largest_h_compression_doubles_the_bound(gamma: float) -> None:
    """At the step size at which the first two terms, those of SGD, are together the least."""
    loss = Loss(gap=3.0, smoothness=2.0, noise=5.0, gradient=7.0)
    steps, workers, batch = 10**7, 6, 4
    h, lr = largest_h(gamma, steps, workers, batch, loss)

    def plain(lr: float) -> float:
        return 4 * 3 / (lr * steps) + 2 * lr * 2 * 25 / (workers * batch)

    assert plain(lr) < min(plain(0.99 * lr), plain(1.01 * lr))
    c = 1 + 2 * (1 - gamma) * (2 - gamma) / gamma**2
    assert 8 * c * lr**2 * 4 * 49 * h**2 == pytest.approx(plain(lr))
    # As the order says: 16 times the steps double it.
    assert largest_h(gamma, 16 * steps, workers, batch, loss)[0] == pytest.approx(2 * h)
    assert largest_h(gamma, steps, 16 * workers, batch, loss)[0] == pytest.approx(h / 8)


@pytest.mark.parametrize(
    "text", ["topk(k=1)", "topk(k=5)", "randk(k=3)", "topk(k=4) >> qsgd(levels=7, scaled=true)"]
)
@pytest.mark.parametrize("shape", ["flat", "noise"])
def test_an_error_memory_keeps_to_the_bound_behind_h(text: str, shape: str) -> None:
    """E‖m‖² ≤ 2(1 − γ)(2 − γ)/γ²·‖u‖², where every update u is as long as any."""
    n, rounds = 20, 400
    link = Link(build(text, "compressor"), ErrorFeedback())
    gamma = link.compressor.claims.gamma(n)
    assert gamma is not None
    rng, kept = np.random.default_rng(0), []
    sender = Sender(link, np.zeros(n, np.float32))
    for step in range(rounds):
        u = np.ones(n) if shape == "flat" else rng.standard_normal(n)
        sender.commit(sender.draft((u / np.linalg.norm(u)).astype(np.float32), Seed(0, step=step, use="up")))
        kept.append(float(np.sum(sender.state["residual"].astype(np.float64) ** 2)))
    bound = 2 * (1 - gamma) * (2 - gamma) / gamma**2
    # A part that draws keeps to it in the mean over its draws.
    assert (max(kept) if text == "topk" else np.mean(kept)) <= bound
    assert max(kept) > 0


@pytest.mark.parametrize(
    ("probe", "error", "text"),
    [
        (np.zeros(3, np.float32), SettingError, "the probe is zero"),
        (np.array([1e-60]), SettingError, "the probe is zero"),
        (np.ones(0), SettingError, "the probe is empty"),
        (np.ones((2, 2)), SettingError, "not a float64 array of shape (2, 2)"),
        (np.ones(3, np.int64), SettingError, "not a int64 array"),
        (np.array([1.0, np.nan]), NotFinite, "element 1 of the probe is nan"),
        (np.array([1.0, 1e39]), NotFinite, "element 1 of the probe is 1e+39"),
        (np.full(4, 3e38), NotFinite, "norm 6e+38 is beyond float32"),
    ],
)
def test_bad_probes(probe: np.ndarray, error: type[Exception], text: str) -> None:
    with pytest.raises(error) as caught:
        tune(0.1, probe=probe)
    assert text in str(caught.value)


def test_a_vector_of_one_coordinate() -> None:
    rows = {row.family: row for row in tune(1, probe=np.array([2.0]))}
    assert rows["sign"].bits == 33
    assert rows["topk(k)"].reason == "nothing can be left out of a vector of 1"


# --- the command --------------------------------------------------------------------------------


def invoke(*args: object) -> Result:
    return CliRunner().invoke(qsparse, ["tune", *map(str, args)])


def test_the_table() -> None:
    result = invoke("--gamma", 0.1, "--n", 1000, "--sync-every", 4)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == "γ ≥ 0.1 for 1,000 coordinates, by bounds for all vectors; a message every 4 steps"
    (line,) = [line for line in lines if line.startswith("topk(k) >> qsgd(s, scaled=true)")]
    words = '"topk(k=103) >> qsgd(levels=63, scaled=true)" 63 103 0.1004 1,783 446 71.8'
    assert " ".join(line.split()).endswith(words)
    assert "topk(k) >> sign           bound: γ ≥ 0.1 does not hold for all vectors; try --probe" in lines
    assert "H, by theory" not in result.stdout


def test_bytes_both_ways_by_hand() -> None:
    """Three of four workers are elsewhere: what they report and are told is what crosses the link."""
    result = invoke("--gamma", 0.1, "--n", 1000, "--sync-every", 4, "--workers", 4, "--by", "bytes", "--json")
    assert result.exit_code == 0, result.output
    rows = {row["family"]: row for row in json.loads(result.stdout)["reached"]}
    dense, sparse = rows["float32"], rows["topk(k)"]
    assert (dense["bytes_up"], dense["bits_down"], dense["bits_both"]) == (4050, 32_000, 64_000)
    assert dense["link_bytes"] == 3 * (dense["bytes_up"] + dense["bytes_down"])
    assert dense["link_gain"] == pytest.approx(4, rel=1e-3)  # a message every four steps
    # k = 100 each: about 344 of 1000 change, 32·344 bits and a bitmap of 1000. The reports: 4·4200.
    assert (sparse["k"], sparse["bits"], sparse["bits_down"]) == (100, 4200, 32 * 344 + 1000)
    assert sparse["link_bytes"] == 3 * (sparse["bytes_up"] + sparse["bytes_down"])
    links = [row["link_bytes"] for row in rows.values()]
    assert links == sorted(links)


def test_bytes_up_are_those_of_the_probe(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    x = vectors(500)["heavy"]
    np.save(path, x)
    asked = ("--gamma", 0.2, "--probe", path, "--workers", 3, "--down", "sign", "--by", "bytes")
    result = invoke(*asked, "--json")
    assert result.exit_code == 0, result.output
    for row in json.loads(result.stdout)["reached"]:
        part = build(row["compressor"], "compressor")
        assert row["bytes_up"] == len(part.compress(x, Seed(0, use="up"))), row["compressor"]
        assert row["bits_down"] == 32 + 500
    table = invoke(*asked).stdout
    assert "3 workers, one of which coordinates; models are told by sign" in table
    assert "bytes up" in table


def test_json_of_a_probe(tmp_path: Path) -> None:
    x = vectors(1000)["gaussian"]
    path = tmp_path / "x.npy"
    np.save(path, x.astype(">f8"))
    result = invoke(
        "--gamma", 0.3, "--probe", path, "--sync-every", 8, "--json",
        "--steps", 10_000, "--workers", 4, "--batch", 4,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    rows = tune(0.3, probe=x)
    assert (answer["n"], answer["sync_every"]) == (1000, 8)
    assert [row["family"] for row in answer["reached"]] == [row.family for row in rows if not row.reason]
    best = answer["reached"][0]
    assert build(best["compressor"], "compressor") == rows[0].compressor
    assert best["bits_per_step"] == best["bits"] / 8
    assert best["gain"] == 32 * 1000 * 8 / best["bits"]
    assert best["wire_bytes"] > 0
    assert answer["order_of_h"]["synchronous"] == pytest.approx(0.3 * 10 / 8)
    assert answer["missed"][0]["reason"]


def test_the_largest_h_of_a_loss() -> None:
    asked = ("--gamma", 0.5, "--n", 40, "--steps", 10**8, "--workers", 4, "--batch", 8, "--loss")
    result = invoke(*asked, "gap=2,smoothness=1,noise=4,gradient=4")
    assert result.exit_code == 0, result.output
    line = "H, by the bound for this loss: at most 2, with a learning rate of 0.000283"
    assert result.stdout.splitlines()[-1] == line
    answer = json.loads(invoke(*asked, "gap=2,smoothness=1,noise=4,gradient=80", "--json").stdout)
    assert answer["largest_h"]["h"] == pytest.approx(2.809 / 20, rel=1e-3)
    rough = invoke(*asked, "gap=2,smoothness=1,noise=4,gradient=80").stdout
    assert "at most 0.14, so not even 1, with" in rough


def test_table_of_a_probe(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, vectors(500)["gaussian"])
    options = ("--steps", 10_000, "--workers", 4, "--batch", 4)
    result = invoke("--gamma", 0.2, "--n", 500, "--probe", path, *options)
    assert result.exit_code == 0, result.output
    assert f"measured on {path}" in result.stdout
    assert "wire bytes    draws" in result.stdout
    assert (
        "H, by theory and up to unknown constants: synchronous O(0.25), asynchronous O(0.5)" in result.stdout
    )


#: Asks for the largest H of a loss.
THEORY = ["--gamma", 0.1, "--n", 9, "--steps", 5, "--workers", 2, "--batch", 1, "--loss"]


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["--gamma", 0, "--n", 9], "SettingError: gamma must lie in (0, 1], not 0"),
        (["--gamma", 1.5, "--n", 9], "SettingError: gamma must lie in (0, 1], not 1.5"),
        (["--gamma", "nan", "--n", 9], "SettingError: gamma must lie in (0, 1], not nan"),
        (["--gamma", 0.1, "--n", 0], "SettingError: n must be at least 1, not 0"),
        (["--gamma", 0.1], "SettingError: give n, the length of the vector, or a probe"),
        (["--gamma", 0.1, "--n", 9, "--sync-every", 0], "SettingError: --sync-every must be at least 1"),
        (["--gamma", 0.1, "--n", 9, "--steps", 5], "SettingError: --steps and --batch belong together"),
        (["--gamma", 0.1, "--n", 9, "--loss", "gap=1"], "SettingError: --loss goes with --steps"),
        ([*THEORY, "gap=1"], "SettingError: --loss gap=1: write your figures as gap=2"),
        ([*THEORY, "gap=1,smoothness=x"], "SettingError: --loss gap=1,smoothness=x: write your figures"),
        (
            [*THEORY, "gap=0,smoothness=1,noise=1,gradient=1"],
            "SettingError: gap of a loss must be positive",
        ),
        (
            [*THEORY, "gap=9,smoothness=9,noise=1,gradient=1"],
            "SettingError: 5 steps are too few for this bound",
        ),
        (["--gamma", 0.1, "--n", 9, "--by", "bytes"], "SettingError: bytes both ways are those of several"),
        (["--gamma", 0.1, "--n", 9, "--workers", 1, "--down", "sign"], "SettingError: bytes both ways are"),
        (["--gamma", 0.1, "--workers", 3], "SettingError: give n, the length of the vector, or a probe"),
        (
            ["--gamma", 0.1, "--n", 9, "--steps", 5, "--workers", 0, "--batch", 1],
            "SettingError: steps, workers and batch must be at least 1, not 5, 0 and 1",
        ),
        (["--gamma", 0.1, "--probe", "nowhere.npy"], "DataError: cannot read --probe nowhere.npy: No such"),
        (["--gamma", 0.1, "--probe", "."], "DataError: --probe . is a folder"),
        (["--gamma", 0.1, "--probe", "text.npy"], "DataError: --probe text.npy holds no array"),
        (["--gamma", 0.1, "--probe", "empty.npy"], "DataError: --probe empty.npy holds no array"),
        (["--gamma", 0.1, "--probe", "two.npz"], "DataError: --probe two.npz holds no array"),
        (["--gamma", 0.1, "--probe", "torn.npy"], "DataError: --probe torn.npy holds no array"),
        (["--gamma", 0.1, "--probe", "nan.npy"], "NotFinite: element 2 of the probe is nan"),
        (["--gamma", 0.1, "--probe", "matrix.npy"], "SettingError: a probe is one flat float32 or float64"),
        (["--gamma", 0.1, "--probe", "good.npy", "--n", 4], "SettingError: n is 4 and the probe has 3"),
    ],
)
def test_refused(args: list[object], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.npy").write_text("1, 2, 3")
    Path("empty.npy").touch()
    np.savez("two.npz", a=np.ones(3))
    np.save("good.npy", np.ones(3))
    Path("torn.npy").write_bytes(Path("good.npy").read_bytes()[:-3])
    np.save("nan.npy", np.array([1, 2, np.nan]))
    np.save("matrix.npy", np.ones((3, 2)))
    result = invoke(*args)
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    assert result.stderr.startswith(f"error: {text}")
    assert result.stderr.count("\n") == 1


def page(root: Path, language: str) -> str:
    """The only block of a language in docs/tuning.md."""
    text = (root / "docs" / "tuning.md").read_text(encoding="utf-8")
    (block,) = re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return str(block)


def test_the_page_shows_what_is_printed(root: Path) -> None:
    prompt, _, expected = page(root, "console").partition("\n")
    result = invoke(*prompt.removeprefix("$ qsparse tune ").split())
    assert result.exit_code == 0, result.output
    assert [line.rstrip() for line in result.stdout.splitlines()] == expected.splitlines()


def test_the_pages_probe_is_one(root: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    subprocess.run([sys.executable, "-c", page(root, "python")], cwd=tmp_path, timeout=120, check=True)
    rows = tune(0.1, probe=np.load(tmp_path / "probe.npy"))
    assert not rows[0].reason
