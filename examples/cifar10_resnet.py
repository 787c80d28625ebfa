"""A ResNet learns CIFAR-10 in an ordinary PyTorch loop, made a distributed one by three marked lines.

    mpirun -n 2 python examples/cifar10_resnet.py --data-dir DIR --epochs 3

Two lines attach the loop, the third says at the end what the last steps have not. Beside these, as in any
distributed loop, every rank takes its share of the pictures, and they count what all got right.

Every rank takes ten steps of SGD on its share, then says of each weight which way it has gone, and of each
layer how far on average: one bit a weight for ten steps, over 300 times fewer bits up than with --algorithm
sgd, where all ranks average all values after every step, which is plain SGD with the same global batch. Down
comes the model in full, every ten steps. The same without a loop of one's own:

    mpirun -n 2 qsparse train --data cifar10 --data-dir DIR --model resnet20 --epochs 3 --batch 64 \
        --algorithm "qsparse-local-sgd(H=10, compressor=blockwise(sign, layers=true))" --momentum 0.9 \
        --weight-decay 0.0005 --lr "cosine(0.1, warmup=100)" --augment crop-flip
"""

import argparse
import math
import time
from pathlib import Path

import torch
from mpi4py import MPI
from torch.nn import functional

from qsparse.data import Batches, load, shard
from qsparse.data.augment import crop_flip
from qsparse.ledger import combine
from qsparse.seeds import Seed
from qsparse.torch import attach  # 1
from qsparse.torch.models import build_model
from qsparse.torch.problem import evaluate

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument(
    "--data-dir", type=Path, help="where CIFAR-10 lies; else QSPARSE_DATA, the cache, a download"
)
parser.add_argument("--model", default="resnet20", help="resnet20, resnet32, resnet18, cnn, …")
parser.add_argument("--algorithm", default="qsparse-local-sgd(H=10, compressor=blockwise(sign, layers=true))")
parser.add_argument("--epochs", type=int, default=3)
parser.add_argument("--steps", type=int, help="end after so many steps, whatever the epochs")
parser.add_argument("--batch", type=int, default=64, help="pictures of a rank's step")
parser.add_argument("--lr", type=float, default=0.1, help="of SGD, at its largest")
parser.add_argument("--momentum", type=float, default=0.9)
parser.add_argument("--weight-decay", type=float, default=5e-4)
parser.add_argument("--warmup", type=int, default=100, help="steps in which the learning rate grows")
parser.add_argument("--seed", type=int, default=0)
args = parser.parse_args()
for name, least in (("epochs", 1), ("steps", 1), ("warmup", 0)):
    value = getattr(args, name)
    if value is not None and value < least:
        parser.error(f"--{name} must be at least {least}, not {value}")

comm = MPI.COMM_WORLD
torch.set_num_threads(1)
seed = Seed(args.seed, comm.rank)
model = build_model(args.model, (3, 32, 32), 10, seed)
optimizer = torch.optim.SGD(model.parameters(), args.lr, args.momentum, weight_decay=args.weight_decay)
# From here on, a rank that fails ends the job instead of leaving the others waiting.
link = attach(model, optimizer, args.algorithm, comm)  # 2

data = load("cifar10", args.data_dir)
batches = Batches(shard(data.train_y, comm.size, "random", seed)[comm.rank], args.batch, seed.at(use="batch"))
# Shares may differ by a picture, and all ranks must take as many steps and test after the same ones.
per_epoch = comm.allreduce(batches.steps_per_epoch, MPI.MIN)
steps = args.steps or args.epochs * per_epoch


def rate(t: int) -> float:
    """Linear warm-up, then half a cosine over the other steps: cosine(…, warmup=…) of qsparse train."""
    if t < args.warmup:
        return (t + 1) / args.warmup
    return (1 + math.cos(math.pi * (t - args.warmup) / max(1, steps - args.warmup))) / 2


def accuracy() -> float:
    """On the test set, of which every rank takes a part, with its own model."""
    n = len(data.test_y)
    part = evaluate(
        model, data.test_x, data.test_y, n * comm.rank // comm.size, n * (comm.rank + 1) // comm.size
    )
    model.train()
    return comm.allreduce(part.right) / n


scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
begin = time.perf_counter()
for t in range(steps):
    chosen = batches.batch(t)
    x, y = torch.from_numpy(data.train_x[chosen]), torch.from_numpy(data.train_y[chosen])
    crop_flip(x.numpy(), seed.at(step=t, use="augment"))
    optimizer.zero_grad()
    functional.cross_entropy(model(x), y).backward()
    optimizer.step()
    scheduler.step()
    if (t + 1) % per_epoch == 0:
        reached = accuracy()
        if comm.rank == 0:
            print(
                f"epoch {(t + 1) // per_epoch}: accuracy {reached:.4f}, {time.perf_counter() - begin:.0f} s",
                flush=True,
            )

link.finish()  # 3: the last steps since a meeting, before the model is used
reached = accuracy()
ledgers = comm.gather(link.ledger.snapshot())
if comm.rank == 0:
    said = combine(ledgers)
    dense = 32 * sum(p.numel() for p in model.parameters()) * comm.size * steps
    print(f"accuracy {reached:.4f} after {steps} steps; of {dense:,} dense bits all ranks said")
    for way in ("up", "down"):
        bits, size = said["paper_bits"][way], said["wire_bytes"][way]
        print(f"{way}: {bits:,} paper bits ({dense / bits:,.0f} times fewer), {size:,} wire bytes")
