"""The pictures of runs: functions that take methods and return a figure, or None if nothing was measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from qsparse.report.base import legible, look, mean, new_figure, number
from qsparse.report.runs import Method, Reading, at, whole
from qsparse.run.target import Target

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: The number of layers that have their own bar; these are the largest ones.
_LAYERS: Final = 16
#: The number of panels of bars in a row.
_ACROSS: Final = 4
#: The length of a legend's lines.
_WIDTH: Final = 34

ACCURACY: Final = at("test_accuracy")
LOSS: Final = at("train_loss")
#: Where a target is drawn.
_AIMS: Final = {"test_accuracy": ACCURACY, "train_loss": LOSS}


@dataclass(frozen=True)
class Curves:
    """One line for each method, with the range of its seeds as a band.

    Args:
        name: the name of the file.
        title: what is shown.
        x, y: how both are read from an evaluation.
        xlabel, ylabel: the labels of the axes, with units.
        xlog, ylog: whether the axes are logarithmic; values that are not positive are left out then.
        floor: values below this are not shown.
    """

    name: str
    title: str
    x: Reading
    y: Reading
    xlabel: str
    ylabel: str
    xlog: bool = False
    ylog: bool = False
    floor: float | None = None

    def draw(self, methods: Sequence[Method], target: Target | None) -> Figure | None:
        """Draw the curves, with the target where y is its figure."""
        curves = [
            [
                point
                for point in method.curve(self.x, self.y)
                if (point[0] > 0 or not self.xlog) and (point[2] > 0 or not self.ylog)
            ]
            for method in methods
        ]
        if not any(curves):
            return None
        figure, axes = _axes(methods)
        aimed = target if target is not None and self.y is _AIMS.get(target.figure) else None
        if aimed is not None:
            _target(axes, aimed, "reached at")
        for place, (method, points) in enumerate(zip(methods, curves, strict=True)):
            if points:
                self._draw_one(axes, place, method, points, aimed)
        axes.set(title=self.title, xlabel=self.xlabel, ylabel=self.ylabel)
        for direction, log in (("x", self.xlog), ("y", self.ylog)):
            if log:
                _logarithmic(axes, direction)
        if self.floor is not None and axes.get_ylim()[0] < self.floor:
            axes.set_ylim(bottom=self.floor)
        _legend(figure, axes)
        return figure

    def _draw_one(
        self,
        axes: Axes,
        place: int,
        method: Method,
        points: Sequence[tuple[float, float, float, float]],
        aimed: Target | None,
    ) -> None:
        xs, ys, low, high = zip(*points, strict=True)
        style = look(place)
        label = method.label
        if aimed is not None:
            reached = method.until(aimed, self.x)
            label += f": {number(mean(reached))}{method.some(reached)}" if reached else ": not reached"
            # A mean over only those seeds that reach the target is not a point of the method.
            if len(reached) == len(method.runs):
                axes.plot(
                    [mean(reached)], [aimed.value], marker=style["marker"], color=style["color"],
                    markersize=11, markeredgecolor="white", linestyle="none", zorder=5, clip_on=False,
                )  # fmt: skip
        # A few markers, at other places than those of the other methods.
        every = max(1, len(xs) // 8)
        axes.plot(
            xs, ys, label=legible(label, _WIDTH), linewidth=1.6, markersize=5,
            markevery=(place % every, every), zorder=3, **style,
        )  # fmt: skip
        if len(method.runs) > 1:
            axes.fill_between(xs, low, high, color=style["color"], alpha=0.15, linewidth=0, zorder=2)


def _curves() -> list[Curves]:
    across: list[tuple[str, str, Reading, str, bool]] = [
        ("link-bytes", "traffic", whole("link_bytes"), "bytes on the busiest link, up and down", True),
        ("wire-bytes", "wire bytes up", at("wire_bytes", "up"), "wire bytes of all workers, up", True),
        ("paper-bits", "paper bits up", at("paper_bits", "up"), "paper bits of all workers, up", True),
        ("steps", "steps", at("step"), "steps of each worker", False),
        ("time", "time", at("seconds", "total"), "seconds since training began", False),
    ]
    up: list[tuple[str, str, Reading, str, bool]] = [
        ("accuracy", "Test accuracy", ACCURACY, "test accuracy", False),
        ("loss", "Training loss", LOSS, "training loss since the last evaluation", True),
    ]
    found = [
        Curves(f"{what}-{over}", f"{title} over {name}", x, y, xlabel, ylabel, xlog, ylog)
        for what, title, y, ylabel, ylog in up
        for over, name, x, xlabel, xlog in across
    ]
    found += [
        Curves(f"top5-{over}", f"Top-5 accuracy over {name}", x, at("top5"), xlabel, "top-5 accuracy", xlog)
        for over, name, x, xlabel, xlog in (across[0], across[2])
    ]
    found += [
        Curves(
            "contraction", "How much a message says", at("step"), at("contraction", "all"), across[3][3],
            "γ = 1 − ‖u − C(u)‖²/‖u‖²", floor=-1.0,
        ),
        Curves(
            "error-memory", "What messages up leave unsaid", at("step"), at("error_memory", "up"),
            across[3][3], "‖error memory‖, mean over the workers", ylog=True,
        ),
        Curves(
            "model-error", "Error of the models that are told", at("step"), at("model_error", "norm"),
            across[3][3], "‖x − Q(x)‖ of the last answer", ylog=True,
        ),
    ]  # fmt: skip
    return found


def pareto(methods: Sequence[Method], target: Target | None) -> Figure | None:
    """Final accuracy over the bytes of the run, with the front: on the busiest link, then all up and down."""
    sizes = {
        "on the busiest link": ("bytes on the busiest link, up and down", whole("link_bytes")),
        **{way: (f"wire bytes of the whole run, {way}", at("wire_bytes", way)) for way in ("up", "down")},
    }
    # With allgather nothing is sent down.
    sizes = {
        name: size for name, size in sizes.items() if any(any(method.ends(size[1])) for method in methods)
    }
    if not sizes:
        return None
    figure = new_figure("plot", 5.5 + 3.5 * len(sizes), _height(methods))
    panels = figure.subplots(1, len(sizes), sharey=True, squeeze=False)[0]
    for axes, (name, (label, size)) in zip(panels, sizes.items(), strict=True):
        _front(axes, methods, size)
        if target is not None and target.figure == "test_accuracy":
            _target(axes, target, "")
        axes.set(title=f"Accuracy and traffic {name}", xlabel=label)
        axes.grid(alpha=0.3)
        _logarithmic(axes, "x")
    panels[0].set_ylabel("final test accuracy")
    _legend(figure, *panels)
    return figure


def _front(axes: Axes, methods: Sequence[Method], size: Reading) -> None:
    """A point for each method that sent anything, and the front: methods that no other beats in both."""
    ends = [
        (place, mean(method.ends(size)), method.ends(ACCURACY))
        for place, method in enumerate(methods)
        if any(method.ends(size))
    ]
    front: list[tuple[float, float]] = []
    for _, total, accuracies in sorted(ends, key=lambda end: (end[1], -mean(end[2]))):
        if not front or mean(accuracies) > front[-1][1]:
            front.append((total, mean(accuracies)))
    front.append((max(total for _, total, _ in ends), front[-1][1]))
    axes.step(*zip(*front, strict=True), where="post", color="#999999", linewidth=1, zorder=1, label="front")
    for place, total, accuracies in ends:
        style = look(place)
        middle = mean(accuracies)
        axes.errorbar(
            [total], [middle], [[middle - min(accuracies)], [max(accuracies) - middle]], color=style["color"],
            marker=style["marker"], markersize=9, linestyle="none", capsize=3, zorder=3,
            label=legible(f"{methods[place].label}: {middle:.4f}", _WIDTH),
        )  # fmt: skip


def layer_bytes(methods: Sequence[Method], target: Target | None) -> Figure | None:
    """Bars of the wire bytes of each layer in a message up, one panel for each method."""
    shown = []
    for place, method in enumerate(methods):
        runs = [run.last["layer_bytes"] for run in method.runs if "layer_bytes" in run.last]
        if runs:
            names = list(runs[0]["layers"])
            found = {name: mean([run["layers"].get(name, 0.0) for run in runs]) for name in names}
            shown.append((place, method.label, found, mean([run["frame"] for run in runs])))
    if not shown:
        return None
    # The largest layers, by their largest share in any method, in the order of the model.
    order: dict[str, float] = {}
    for _, _, found, _ in shown:
        total = sum(found.values()) or 1.0
        for name, size in found.items():
            order[name] = max(order.get(name, 0.0), size / total)
    kept = sorted(order, key=lambda name: -order[name])[:_LAYERS]
    names = [name for name in order if name in kept]
    rest = len(order) - len(names)
    rows = [*names, *([f"{rest} other layers"] if rest else []), "frame"]
    across = min(_ACROSS, len(shown))
    down = -(-len(shown) // across)
    figure = new_figure("plot", 2.2 + 2.6 * across, down * (1.1 + 0.24 * len(rows)))
    panels = figure.subplots(down, across, sharey=True, squeeze=False)
    for axes, (place, label, found, frame) in zip(panels.flat, shown, strict=False):
        others = [sum(size for name, size in found.items() if name not in kept)] if rest else []
        values = [*(found.get(name, 0.0) for name in names), *others, frame]
        axes.barh(range(len(rows)), values, color=look(place)["color"], height=0.7)
        axes.set_yticks(range(len(rows)), [legible(row, _WIDTH) for row in rows], fontsize="small")
        axes.set_title(legible(label, 26), fontsize="medium")
        axes.set_xlabel("wire bytes", fontsize="small")
        axes.tick_params(axis="x", labelsize="small")
        axes.locator_params(axis="x", nbins=4)
        axes.xaxis.set_major_formatter(lambda value, _: number(value))
        axes.grid(axis="x", alpha=0.3)
        axes.set_axisbelow(True)
    panels[0, 0].invert_yaxis()
    for axes in panels.flat[len(shown) :]:
        axes.set_visible(False)
    figure.suptitle("Wire bytes of a message up, by layer")
    return figure


#: Every picture by the name of its file.
PICTURES: Final[dict[str, Callable[[Sequence[Method], Target | None], Figure | None]]] = {
    **{curves.name: curves.draw for curves in _curves()},
    "pareto": pareto,
    "layer-bytes": layer_bytes,
}


def _axes(methods: Sequence[Method]) -> tuple[Figure, Any]:
    figure = new_figure("plot", 9.0, _height(methods))
    axes = figure.subplots()
    axes.grid(alpha=0.3)
    return figure, axes


def _height(methods: Sequence[Method]) -> float:
    """The height in inches, with room for the legend."""
    lines = sum(1 + len(method.label) // _WIDTH for method in methods)
    return max(4.6, 1.2 + 0.24 * lines)


def _target(axes: Axes, target: Target, what: str) -> None:
    label = " ".join(filter(None, [f"target {target.value:g}", what]))
    axes.axhline(target.value, color="#444444", linewidth=1, linestyle=(0, (1, 2)), zorder=1, label=label)


def _logarithmic(axes: Axes, direction: str) -> None:
    """Put labels at powers of ten, and between them only where there would be hardly any."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set(**{f"{direction}scale": "log"})
    axis = getattr(axes, f"{direction}axis")
    low, high = axis.get_view_interval()
    axis.set_minor_formatter(NullFormatter())
    if high < 100 * low:
        digits = (1.0, 2.0, 5.0) if high > 4 * low else range(1, 10)
        axis.set_major_locator(LogLocator(subs=digits))
        axis.set_major_formatter(FuncFormatter(_power_of_ten))


def _power_of_ten(value: float, _: object) -> str:
    digit, exponent = f"{value:.0e}".split("e")
    return rf"${digit}\times10^{{{int(exponent)}}}$" if value >= 1000 or value < 0.01 else f"{value:g}"


def _legend(figure: Figure, *panels: Axes) -> None:
    """Put the legend next to the picture; what is in several panels is named once."""
    found: dict[str, Any] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    figure.legend(
        found.values(), found.keys(), loc="outside right upper", fontsize="small", frameon=False,
        handlelength=3.2,
    )  # fmt: skip
