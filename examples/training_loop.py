"""An ordinary PyTorch training loop, made a distributed one by three marked lines and shares of the data.

mpirun -n 4 python examples/training_loop.py
"""

import torch
from mpi4py import MPI
from sklearn.datasets import load_digits
from torch.nn import functional

from qsparse.torch import attach  # 1

comm = MPI.COMM_WORLD
torch.set_num_threads(1)
x, y = load_digits(return_X_y=True)
x, y = torch.tensor(x / 16, dtype=torch.float32), torch.tensor(y)
train = torch.arange(1500)[comm.rank :: comm.size]  # every rank its share

model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20)
link = attach(model, optimizer, "qsparse-local-sgd(H=4)", comm)  # 2

for _epoch in range(20):
    for batch in train[torch.randperm(len(train))].split(16):
        optimizer.zero_grad()
        functional.cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()
    scheduler.step()

link.finish()  # 3: the last steps since a meeting, before the model is used
if comm.rank == 0:
    accuracy = (model(x[1500:]).argmax(1) == y[1500:]).float().mean()
    print(f"accuracy {accuracy:.3f}, this rank's bytes {link.ledger.wire_bytes}")
