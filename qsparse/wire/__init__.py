"""How ranks send each other frames: through MPI, as threads, or simulated; importing it registers them."""

from qsparse.wire.base import Ranks, Wire
from qsparse.wire.mpi import Processes
from qsparse.wire.simulated import Simulated
from qsparse.wire.threads import Threads

__all__ = ["Processes", "Ranks", "Simulated", "Threads", "Wire"]
