"""Laws of participations: which workers are chosen, and by what."""

from __future__ import annotations

import numpy as np

from qsparse.participation import Participation
from qsparse.testing.base import SEED, bits_of, hold, is_moderate, law
from qsparse.types import Vector


@law("invited", "participation")
def _invited(part: Participation, name: str, x: Vector) -> bool:
    """One answer for each worker; all are invited where nothing is claimed, and somebody always is."""
    if not is_moderate(x):
        return False
    part = part.over(20).bind(0.1)
    state, again = part.init(SEED), part.init(SEED)
    for each in (state, again):
        part.heard(each, x)
    for t in (1, 2, 3):
        model = x.copy()
        invited = part.invited(state, [1.0, None], model, t)
        fine = len(invited) == 2 and all(isinstance(each, bool | np.bool_) for each in invited)
        hold(fine, f"of two workers invited says {invited!r}")
        hold(all(invited) or part.claims.chooses, "it leaves a worker out, and does not claim to choose")
        hold(part.claims.by_change or any(invited), "nobody is invited, whatever there is to report")
        hold(model.tobytes() == x.tobytes(), "invited changed the model")
        hold(part.invited(again, [1.0, None], model, t) == invited, "equal states invite other workers")
        hold(bits_of(state) == bits_of(again), "equal states become different ones")
    return True
