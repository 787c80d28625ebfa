"""A compressed allreduce in an mpi4py program that knows nothing of training.

    mpirun -n 3 python examples/allreduce_in_your_code.py

Every rank holds a vector. Each round sends about a hundredth of the bytes; error feedback sends
later what was left out, so the average of the results tends to the dense mean. Needs no torch.
"""

import numpy as np
from mpi4py import MPI

from qsparse import CompressedAllreduce

comm = MPI.COMM_WORLD
n = 100_000
x = np.random.default_rng(comm.rank).standard_normal(n, dtype=np.float32)

dense = np.empty_like(x)
comm.Allreduce(x, dense)
dense /= comm.size

allreduce = CompressedAllreduce(comm, "topk(ratio=0.05) >> sign", "errorfeedback")
average = np.zeros_like(x)
for t in range(1, 201):
    average += allreduce(x, out=np.empty_like(x))
    if comm.rank == 0 and t in (1, 2, 5, 10, 20, 50, 100, 200):
        error = np.linalg.norm(average / t - dense) / np.linalg.norm(dense)
        sent = allreduce.ledger.wire_bytes["up"] / t / max(1, comm.size - 1)  # alone, it sends nothing
        print(f"round {t:3d}: relative error {error:.4f}, {sent:,.0f} bytes a message (dense {x.nbytes:,})")
allreduce.close()
