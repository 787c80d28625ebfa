"""AsyLPG in a PyTorch loop of one's own: the loop computes gradients, and the algorithm takes the steps.

mpirun -n 4 python examples/own_steps.py
"""

import torch
from mpi4py import MPI
from sklearn.datasets import load_digits
from torch.nn import functional

from qsparse.torch import attach

comm = MPI.COMM_WORLD
torch.set_num_threads(1)
x, y = load_digits(return_X_y=True)
x, y = torch.tensor(x / 16, dtype=torch.float32), torch.tensor(y)
model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))


def gradient(batch):
    examples = share if batch is None else batch  # None: the algorithm asks for the full gradient
    loss = functional.cross_entropy(model(x[examples]), y[examples])
    loss.backward()
    return loss


link = attach(model, algorithm="asylpg(inner=50, lr=0.1)", comm=comm, gradient=gradient, steps=300)
if link.worker is None:  # rank 0: it answers the workers, who do not wait for each other
    link.serve()
else:
    share = torch.arange(1500)[link.worker :: link.workers]
while not link.over:
    link.step(share[torch.randint(len(share), (16,))])
link.finish()

if comm.rank == 0:
    accuracy = (model(x[1500:]).argmax(1) == y[1500:]).float().mean()
    print(f"accuracy {accuracy:.3f}, this rank's bytes {link.ledger.wire_bytes}")
