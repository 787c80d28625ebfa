"""How ranks send each other frames: through MPI, or as threads; importing the room registers both."""

from qsparse.wire.base import Ranks, Wire
from qsparse.wire.mpi import Processes
from qsparse.wire.threads import Threads

__all__ = ["Processes", "Ranks", "Threads", "Wire"]
