"""A run's measurements as TensorBoard scalars."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from qsparse.errors import SettingError, installing
from qsparse.run.records import Progress, explained


class Board(Progress):
    """Writes each evaluation of a run as scalars over its steps.

    What lies there already is removed: a run that goes on tells what it has evaluated before.

    Args:
        folder: where; made if missing.

    Raises:
        SettingError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise SettingError(
                f"--tensorboard needs a library that is missing ({error}): {installing('train')}, or "
                "leave it out: history.jsonl has the same numbers"
            ) from None
        self._make, self._folder = SummaryWriter, folder
        self._writer: Any = None

    def started(self, steps: int, after: int = 0) -> None:
        """Begin a file of events."""
        with explained(self._folder):
            for old in self._folder.glob("events.out.tfevents.*"):
                old.unlink()
            self._writer = self._make(str(self._folder))

    def evaluated(self, record: Mapping[str, Any]) -> None:
        """Write a line of the history."""
        with explained(self._folder):
            for name, value in scalars(record):
                self._writer.add_scalar(name, value, record["step"])
            self._writer.flush()

    def stopped(self) -> None:
        """End the file."""
        if self._writer is not None:
            with explained(self._folder):
                self._writer.close()


#: Scalar and where it stands in a line of the history.
_NAMES = {
    "loss/train": ("train_loss",),
    "loss/test": ("test_loss",),
    "accuracy/test": ("test_accuracy",),
    "accuracy/top5": ("top5",),
    "busiest link/up": ("link_bytes", "up"),
    "busiest link/down": ("link_bytes", "down"),
    "paper bits/up": ("paper_bits", "up"),
    "paper bits/down": ("paper_bits", "down"),
    "wire bytes/up": ("wire_bytes", "up"),
    "wire bytes/down": ("wire_bytes", "down"),
    "skips": ("skips",),
    "staleness/mean": ("staleness", "mean"),
    "staleness/max": ("staleness", "max"),
    "error memory/up": ("error_memory", "up"),
    "error memory/down": ("error_memory", "down"),
    "model error/norm": ("model_error", "norm"),
    "contraction/all layers": ("contraction", "all"),
}


def scalars(record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The scalars of a line of the history, by name; what was not measured is left out."""
    for name, path in _NAMES.items():
        value: Any = record
        for key in path:
            value = None if value is None else value.get(key)
        if value is not None:
            yield name, value
    for name, field in (("contraction", "contraction"), ("layer bytes", "layer_bytes")):
        for layer, value in record.get(field, {}).get("layers", {}).items():
            if value is not None:
                yield f"{name}/{layer}", value
