"""Pictures and tables of runs as files: a PNG for each picture, and one page with all of them."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from qsparse.errors import SettingError
from qsparse.files import named_path
from qsparse.ledger import dense_link_bytes, gains, link_bytes, ring_link_bytes
from qsparse.report.base import Table, mean, new_figure, number, spread
from qsparse.report.plots import ACCURACY, PICTURES
from qsparse.report.runs import Method, Run, at, methods, whole
from qsparse.run.outcome import TRAINED
from qsparse.run.target import Target

_STYLE: Final = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem;
       color: #1a1a1a; background: #fff; }
h1, h2 { font-weight: 600; line-height: 1.2; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
th { border-bottom: 2px solid #888; vertical-align: bottom; white-space: normal; }
small { color: #555; }
.scroll { overflow-x: auto; }
img { max-width: 100%; height: auto; margin: .6rem 0; }
p.note { color: #555; max-width: 60rem; }
"""


class Drawn(NamedTuple):
    """The page that was drawn, and a short form of its table."""

    page: Path
    table: Table


def draw(
    runs: Sequence[Path], out: Path, *, target: str | float | None = None, title: str | None = None
) -> Path:
    """Draw runs of ``qsparse train`` into a folder: a PNG of each picture, and ``index.html`` with all.

    Args:
        runs: folders of runs, or folders in which such folders lie, however deep. Runs whose options
            differ in the seed only are one method, drawn as the mean and the range.
        out: a folder, made if missing; pictures of an earlier call there are replaced.
        target: a test accuracy, or a figure as in ``train_loss=0.17``; the cost to reach it is marked.
        title: the title of the page.

    Returns:
        The page.

    Raises:
        SettingError: a folder holds no run, no run has come to an evaluation, ``out`` cannot be written, the
            target is none, or matplotlib is not installed.
        DataError: a file of a run cannot be read.
    """
    return draw_with_table(runs, out, target, title).page


def draw_with_table(runs: Sequence[Path], out: Path, target: str | float | None, title: str | None) -> Drawn:
    """Draw runs as `draw` does; return the page and a short table to print."""
    aim = None if target is None else Target.read(target)
    new_figure("plot", 1, 1)  # raises before the runs are read if matplotlib is missing
    found, out = methods([named_path(run) for run in runs]), named_path(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        pictures = {}
        for name, picture in PICTURES.items():
            (out / f"{name}.png").unlink(missing_ok=True)
            figure = picture(found, aim)
            if figure is not None:
                image = io.BytesIO()
                figure.savefig(image, dpi=130, format="png")
                pictures[name] = image.getvalue()
                (out / f"{name}.png").write_bytes(pictures[name])
        table = _table(found, aim, _range)
        page = out / "index.html"
        # Folders and titles of a command line may have bytes that are not text.
        page.write_text(_page(title or "Runs", found, table, pictures), "utf-8", "backslashreplace")
    except OSError as error:
        raise SettingError(f"cannot write to --out {out}: {error.strerror}") from None
    return Drawn(page, _table(found, aim, _mean))


def _table(found: Sequence[Method], target: Target | None, cell: Callable[[Sequence[float]], str]) -> Table:
    head = ["method", "runs", "final\naccuracy", "train\nloss", "link bytes\nup + down", "gain\nin all"]
    head += [f"{what}\n{way}" for way in ("up", "down") for what in ("wire bytes", "gain")]
    head += ["paper bits\nup", "paper bits\ndown", "seconds"]
    aims = {
        "link bytes up + down": whole("link_bytes"),
        "paper bits up": at("paper_bits", "up"),
        "wire bytes up": at("wire_bytes", "up"),
        "wire bytes down": at("wire_bytes", "down"),
        "seconds": at("seconds", "total"),
    }
    if target is not None:
        to = f"{target.value:g}" if target.figure == "test_accuracy" else str(target)
        head += [f"{what}\nto {to}" for what in aims]
    rows = []
    for method in found:
        going = "" if all(run.summary for run in method.runs) else " (going)"
        row = [method.label + going, str(len(method.runs))]
        row += [cell(method.ends(reading)) for reading in (ACCURACY, at("train_loss"))]
        row += [cell(method.ends(whole("link_bytes"))), cell(_gains(method, "all"))]
        for way in ("up", "down"):
            row += [cell(method.ends(at("wire_bytes", way))), cell(_gains(method, way))]
        row += [cell(method.ends(at("paper_bits", way))) for way in ("up", "down")]
        row.append(cell(method.ends(at("seconds", "total"))))
        for reading in aims.values() if target is not None else ():
            assert target is not None
            values = method.until(target, reading)
            row.append(cell(values) + method.some(values) if values else "not reached")
        rows.append(row)
    note = (
        "Means over the runs. Link bytes: what the rank with most traffic has sent and received, up and down "
        "together, which is what a slow network makes a run wait for. Wire bytes and paper bits are those of "
        "all ranks, as they went over the wire and by the papers' formulas. Gain in all: what a dense ring "
        "Allreduce after every step has cross each link, over the link bytes. Gain up and down: what dense "
        "float32 after every step sends over a parameter server, over the wire bytes."
    )
    if target is not None:
        what = "that accuracy" if target.figure == "test_accuracy" else "that"
        note += f" To {to}: up to the first evaluation with {what}."
    return Table("Results", head, rows, note)


def _gains(method: Method, way: str) -> list[float]:
    """How many times fewer bytes than dense each run has sent; only for runs that ended and trained."""
    found = []
    for summary in (run.summary for run in method.runs):
        if summary is not None and summary.get("outcome", TRAINED) == TRAINED:
            sent = link_bytes(summary) if way == "all" else summary["wire_bytes"]
            dense = ring_link_bytes(summary) if way == "all" else dense_link_bytes(summary)
            found.append(gains(dense, sent)[way])
    return [gain for gain in found if gain is not None]


def _mean(values: Sequence[float]) -> str:
    if not values:
        return "–"
    middle = mean(values)
    return number(round(middle) if 1000 <= middle < math.inf else middle)


def _range(values: Sequence[float]) -> str:
    """The mean, and the range on a separate line."""
    return "\n".join(filter(None, [_mean(values), spread(values) if len(set(values)) > 1 else ""]))


def _page(title: str, found: Sequence[Method], table: Table, pictures: dict[str, bytes]) -> str:
    images = "\n".join(
        f'<img alt="{html.escape(name)}" src="data:image/png;base64,{base64.b64encode(data).decode()}">'
        for name, data in pictures.items()
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><title>{html.escape(title)}</title><style>{_STYLE}</style></head>
<body>
<h1>{html.escape(title)}</h1>
{_about(found)}
<h2>{html.escape(table.title)}</h2>
<div class="scroll"><table>
{_row(table.head, "th")}
{"".join(_row(row, "td") for row in table.rows)}</table></div>
<p class="note">{html.escape(table.note)}</p>
<h2>Pictures</h2>
{images}
<h2>Runs</h2>
<ul>{"".join(_run(method, run) for method in found for run in method.runs)}</ul>
</body>
</html>
"""


def _about(found: Sequence[Method]) -> str:
    """The options that all runs have in common and that say what is compared."""
    runs = [run for method in found for run in method.runs]
    common = []
    for key in ("data", "model", "ranks", "epochs", "steps", "batch", "sharding"):
        values = {str(run.options.get(key)) for run in runs}
        if len(values) == 1 and values != {"None"}:
            common.append(f"{key} {values.pop()}")
    return f"<p>{html.escape(', '.join(common))}</p>" if common else ""


def _row(cells: Sequence[str], kind: str) -> str:
    texts = (html.escape(cell).split("\n") for cell in cells)
    lines = (first + "".join(f"<br><small>{line}</small>" for line in more) for first, *more in texts)
    return "<tr>" + "".join(f"<{kind}>{text}</{kind}>" for text in lines) + "</tr>\n"


def _run(method: Method, run: Run) -> str:
    state = "" if run.summary else f", going: at step {run.last['step']:,}"
    seed = f", seed {run.options['seed']}" if "seed" in run.options else ""
    return f"<li>{html.escape(f'{method.label}{seed}{state}: {run.folder}')}</li>\n"
