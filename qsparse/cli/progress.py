"""What ``qsparse train`` shows: a bar while it runs, a table at the end."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any

from tabulate import tabulate

from qsparse.cli.launch import TERMINAL
from qsparse.ledger import gains, ring_link_bytes
from qsparse.run.outcome import TRAINED
from qsparse.run.records import Progress


class ProgressBar(Progress):
    """A progress bar on a terminal, be it behind a launcher that told of it; nothing elsewhere."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._bar: Any = None
        self._loss: float | None = None
        self._seen = ""

    def started(self, steps: int, after: int = 0) -> None:
        """Show the bar; steps that were taken before do not count in its speed."""
        columns = os.environ.get(TERMINAL, "")
        behind = int(columns) if columns.isdecimal() and not sys.stderr.isatty() else None
        if not self._quiet and (behind or sys.stderr.isatty()):
            from tqdm import tqdm

            self._bar = tqdm(
                total=steps, initial=after, unit="step", dynamic_ncols=behind is None, ncols=behind
            )

    def stepped(self, t: int, loss: float | None) -> None:
        """Move it."""
        if self._bar is None:
            return
        if loss is not None:
            self._loss = loss if self._loss is None else 0.98 * self._loss + 0.02 * loss
        self._say(refresh=False)
        self._bar.update()

    def evaluated(self, record: Mapping[str, Any]) -> None:
        """Show accuracy and traffic so far."""
        link = record["link_bytes"]
        among = f", top-5 {record['top5']:.4f}" if "top5" in record else ""
        self._seen = (
            f"accuracy {record['test_accuracy']:.4f}{among}, link bytes {sum(link.values()):.3g}: "
            f"{link['up']:.3g} up {link['down']:.3g} down"
        )
        if self._bar is not None:
            self._say(refresh=True)

    def warned(self, text: str) -> None:
        """Say it above the bar, though it be quiet."""
        if self._bar is not None:
            self._bar.clear()
        sys.stderr.write(f"warning: {text}\n")
        sys.stderr.flush()

    def noted(self, text: str) -> None:
        """Say it, unless it be quiet."""
        if not self._quiet:
            sys.stderr.write(f"note: {text}\n")
            sys.stderr.flush()

    def _say(self, refresh: bool) -> None:
        # Who coordinates workers that do not wait hears of no loss.
        loss = "" if self._loss is None else f"loss {self._loss:.3f}"
        self._bar.set_postfix_str(", ".join(filter(None, [loss, self._seen])), refresh=refresh)

    def stopped(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()


def table(summary: Mapping[str, Any], out: str) -> str:
    """What a run came to."""
    loss, exchange = summary["train_loss"], summary.get("exchange", "server")
    workers = f"{summary['workers']} workers" + ("" if exchange.startswith("server") else f" over {exchange}")
    rows = [
        ("test accuracy", f"{summary['test_accuracy']:.4f}"),
        *([("top-5 accuracy", f"{summary['top5']:.4f}")] if "top5" in summary else []),
        ("train loss", "not measured: no step since the last evaluation" if loss is None else f"{loss:.4f}"),
        (
            "steps",
            f"{summary['steps']:,} on {workers}, {summary['parameters']:,} parameters",
        ),
    ]
    if "until" in summary:
        aim = f"{summary['until']}, {'reached' if summary['reached'] else 'NOT reached'}"
        rows.append(("until", aim))
    trained = summary.get("outcome", TRAINED) == TRAINED

    def of(dense: Mapping[str, float], sent: Mapping[str, int], way: str) -> float | None:
        # What a run does not send that has not trained is no gain.
        return gains(dense, sent)[way] if trained else None

    # The whole first: what crossed the busiest link in both directions is what a run waits for.
    link, dense = summary["link_bytes"], summary["dense_link_bytes"]
    whole = of(ring_link_bytes(summary), link, "all")
    rows.append(("busiest link", _fewer(sum(link.values()), whole, "bytes up and down", "a dense Allreduce")))
    sent = summary["wire_bytes"]
    for way in ("up", "down"):
        rows.append((f"wire bytes {way}", _fewer(sent[way], of(dense, sent, way))))
    sent, dense = summary["paper_bits"], summary["dense_bits"]
    rows.append(("paper bits", _fewer(sum(sent.values()), of(dense, sent, "all"), "up and down")))
    for way in ("up", "down"):
        rows.append((f"paper bits {way}", _fewer(sent[way], of(dense, sent, way))))
    if shares := summary.get("worker_steps"):
        taken = sum(shares.values())
        each = ", ".join(f"rank {rank}: {steps / taken:.1%}" for rank, steps in shares.items())
        rows.append(("steps of workers", f"{taken:,} in all ({each})"))
    seconds = summary["seconds"]
    spent = ", ".join(f"{seconds[name]:.1f} {name}" for name in ("compute", "encode", "exchange", "decode"))
    rows.append(("seconds", f"{seconds['total']:.1f} ({spent})"))
    for note in summary.get("resumed", []):
        ranks = f", with {note['ranks']} ranks for {note['from_ranks']}" if "from_ranks" in note else ""
        off = note.get("memory_difference", 0.0)
        sums = f", error memories off by {off:.2g}" if off else ""
        rows.append(("resumed", f"after step {note['step']:,}{ranks}{sums}"))
    rows.append(("written to", out))
    return str(tabulate(rows, tablefmt="plain"))


def _fewer(sent: int, gain: float | None, what: str = "", than: str = "dense") -> str:
    """An amount, and how many times fewer it is than that of plain SGD in float32."""
    amount = f"{sent:,} {what}".rstrip()
    if gain is None:
        return amount
    return f"{amount}, {gain:,.{0 if gain >= 100 else 2}f} times fewer than {than}"
