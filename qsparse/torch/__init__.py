"""What needs torch: models as flat vectors, a few lines for a training loop of one's own.

Importing the room does not load torch; `attach` does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qsparse.torch.attached import Attached, attach
    from qsparse.torch.stepper import Stepper

__all__ = ["Attached", "Stepper", "attach"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from qsparse.torch import attached, stepper

        return getattr(stepper if name == "Stepper" else attached, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
