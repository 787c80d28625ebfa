"""What every wire keeps, over threads and over processes, as jobs of ``mpiexec`` import it."""

from __future__ import annotations

from qsparse.testing.wire_bodies import BODIES, CHUNK, check, frame, reaches_itself

__all__ = ["CHUNK", "LAWS", "check", "frame", "reaches_itself"]

LAWS = BODIES
