"""How ranks reach each other: MPI, and threads of one process."""
