"""The rows of LAQ's tables: an algorithm with its settings, and what was published of it."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from itertools import product
from typing import Final, NamedTuple

from qsparse.algorithm import Algorithm
from qsparse.errors import SettingError
from qsparse.memory import Stateless
from qsparse.presets import gd, lag_wk, laq, qgd

WORKERS: Final = 10
#: Step size, memory and coefficient of the main run of the paper.
ALPHA: Final = 0.02
MEMORY: Final = 10
XI: Final = "0.8/D"
#: The name of gradient descent that compresses gradients and remembers nothing.
COMPRESSED: Final = "CGD"
#: Whose ξ_d: those of the authors' code, or those of the paper.
COEFFICIENTS: Final = ("code", "paper")


class Published(NamedTuple):
    """A row of the table; what the code counts is 4·7850 or 32·7850 bits an upload. None: not at hand."""

    iterations: int | None
    uploads: int
    bits: float


class Row(NamedTuple):
    """One algorithm with one of the authors' step sizes α, which they put on the sum over the workers.

    Attributes:
        name, alpha, algorithm: which.
        published: what they measured, on MNIST; None: nothing.
        source: where it is published.
        D, xi, coefficients: of LAQ, as the command takes them.
        most: iterations after which the run ends, however far it has come; None: it has to arrive.
    """

    name: str
    alpha: float
    algorithm: Algorithm
    published: Published | None = None
    source: str = ""
    D: int = MEMORY
    xi: str = XI
    coefficients: str = COEFFICIENTS[0]
    most: int | None = None

    @property
    def label(self) -> str:
        """What tells rows apart: the settings that are not those of the paper's main run."""
        other = [
            f", D = {self.D}" * (self.D != MEMORY),
            f", ξ = {self.xi}" * (self.xi != XI),
            f", ξ_d of the {self.coefficients}" * (self.coefficients != COEFFICIENTS[0]),
        ]
        return f"{self.name} α = {self.alpha:g}{''.join(other)}"


#: ξ = 0.8/D for a D of 10 and of 2, and ξ = 1/160.
_TENTH, _HALF, _SMALL = Fraction(8, 100), Fraction(8, 20), Fraction(1, 160)
_SMALLER: Final = Published(2530, 530, 1.66e7)
#: By α, D and ξ.
_RESPONSE: Final = {
    (0.01, 10, _TENTH): Published(5219, 825, 2.59e7),
    (0.015, 10, _TENTH): Published(3459, 626, 1.96e7),
    (0.02, 10, _TENTH): Published(2663, 618, 1.94e7),
    (0.04, 10, _TENTH): Published(1410, 1908, 5.99e7),
    (0.02, 2, _HALF): Published(None, 534, 2.67e7),
    (0.01, 10, _SMALL): _SMALLER,
    (0.02, 10, _SMALL): _SMALLER,
}
#: What is to be known of published figures, by α, D and ξ.
_DOUBTS: Final = {
    (
        0.02,
        2,
        _HALF,
    ): "D = 2: 534 uploads are 1.68e+07 bits, and 2.67e+07 bits are 850 uploads: one is wrong.",
    (0.02, 10, _SMALL): "ξ = 1/160 is published for α = 0.01; so few iterations fit α = 0.02 only.",
}


def coefficient(xi: str, D: int) -> Fraction:
    """ξ as the command takes it: a number, or a quotient whose divisor may be D.

    Raises:
        SettingError: it is none, or negative.

    >>> coefficient("0.8/D", 10), coefficient("1/160", 2)
    (Fraction(2, 25), Fraction(1, 160))
    """
    above, slash, below = xi.partition("/")
    try:
        value = Fraction(above) / (Fraction(D if below.strip() == "D" else below) if slash else 1)
    except (ValueError, ZeroDivisionError):
        value = Fraction(-1)
    if value < 0:
        raise SettingError(f"--xi takes numbers of at least 0, such as 0.08, 1/160 or 0.8/D, not {xi!r}")
    return value


def rows(
    alphas: tuple[float, ...], Ds: tuple[int, ...], xis: tuple[str, ...], whose: tuple[str, ...], mnist: bool
) -> list[Row]:
    """Every combination of the settings of LAQ, then those that always speak, and LAG-WK.

    Compressed gradient descent (Khirirat, Feyzmahdavian, Johansson, 2018) is θ ← θ − α·Σ_m Q(∇f_m(θ)). Of Q
    the response gives the bits only, b·p and log2 p; here it is the grid of QGD, so that the difference
    between the two is what QGD remembers.

    Args:
        alphas, Ds, xis, whose: step sizes α, memories D, coefficients ξ, and whose ξ_d.
        mnist: what was published is of MNIST.
    """
    alpha = ALPHA if ALPHA in alphas else alphas[0]
    rate = WORKERS * alpha
    known = mnist and alpha == ALPHA
    return [
        *(_laq(*each, mnist) for each in product(alphas, Ds, xis, whose)),
        Row("GD", alpha, gd(rate), *_table(known, 2820, 28200, 7.08e9)),
        Row("QGD", alpha, qgd(rate, published=True), *_table(known, 2805, 28050, 8.81e8)),
        Row("LAG-WK", alpha, lag_wk(rate), *_table(known, 2659, 2382, 5.98e8)),
        Row(COMPRESSED, alpha, qgd(rate, published=True).with_(memory=Stateless()), most=3000),
    ]


def _laq(alpha: float, D: int, xi: str, whose: str, mnist: bool) -> Row:
    value = coefficient(xi, D)
    theirs = _RESPONSE.get((alpha, D, value)) if mnist else None
    row = laq(WORKERS * alpha, published=True).with_(D=D, spread=whose == COEFFICIENTS[0])
    if xi != XI:
        row = row.with_(xi=float(value))
    return Row("LAQ", alpha, row, theirs, "response" if theirs else "", D, xi, whose)


def _table(known: bool, iterations: int, uploads: int, bits: float) -> tuple[Published | None, str]:
    return (Published(iterations, uploads, bits), "table 2") if known else (None, "")


def doubts(shown: list[Row]) -> Iterator[str]:
    """What is to be known of published figures that are shown."""
    keys = {(row.alpha, row.D, coefficient(row.xi, row.D)) for row in shown if row.published is not None}
    yield from (text for key, text in _DOUBTS.items() if key in keys)
