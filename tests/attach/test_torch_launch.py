"""Processes of which torch or a launcher of its kind knows and MPI does not: each would train alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from mpirun import clean_environment, mpi_run

from qsparse.process.launchers import REMEDIES, announced_size

pytest.importorskip("mpi4py")
pytest.importorskip("torch")

#: What PyTorchJob, `srun` with a wrapper script and torch's own launchers set.
OF_TORCH = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("environ", "found"),
    [
        (OF_TORCH, ("WORLD_SIZE", 2)),
        ({"LOCAL_RANK": "1", "WORLD_SIZE": "4"}, ("WORLD_SIZE", 4)),
        ({"HOROVOD_RANK": "0", "HOROVOD_SIZE": "3"}, ("HOROVOD_SIZE", 3)),
        ({"SLURM_STEP_NUM_TASKS": "1", **OF_TORCH}, ("WORLD_SIZE", 2)),
        ({"RANK": "0", "WORLD_SIZE": "1"}, None),
        ({"RANK": "0"}, None),
        ({"WORLD_SIZE": "8"}, None),
        ({"RANK": "0", "WORLD_SIZE": ""}, None),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, None),
        # The launcher of this very process goes before what surrounds it.
        ({"PMI_SIZE": "1", **OF_TORCH}, None),
        ({"PMI_SIZE": "2", **OF_TORCH}, ("PMI_SIZE", 2)),
    ],
)
def test_who_announces_several_processes(environ: dict[str, str], found: tuple[str, int] | None) -> None:
    assert announced_size(environ) == found
    assert found is None or found[0] in REMEDIES


SPAWN = """
import os
import sys

import torch
import torch.distributed as dist

# What is loaded before the fork is loaded once; MPI is started after it, in each process.
import qsparse.allreduce
import qsparse.torch

torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 0.1)


def work(rank, folder):
    # Nothing in the environment: only the group of torch knows that there are two.
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    from mpi4py import MPI
    from qsparse import CompressedAllreduce
    from qsparse.errors import LaunchError
    from qsparse.torch import attach

    model = torch.nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for start in (
        lambda: attach(model, optimizer, "sgd"),
        lambda: attach(model, optimizer, "sgd", MPI.COMM_WORLD),
        lambda: CompressedAllreduce(MPI.COMM_WORLD),
    ):
        try:
            start()
        except LaunchError as error:
            assert "torch.distributed has 2 processes, but" in str(error), error
            assert "sees a world of 1. " in str(error)
            assert "mpiexec -n N" in str(error)
        else:
            raise AssertionError("it would train alone")
    # Asked for in so many words.
    attach(model, optimizer, "sgd", MPI.COMM_SELF).finish()
    dist.destroy_process_group()
    os.write(1, f"refused {rank}\\n".encode())


if __name__ == "__main__":
    torch.multiprocessing.start_processes(work, (sys.argv[1],), nprocs=2, start_method="fork")
"""


def test_processes_of_a_group_of_torch_are_refused(tmp_path: Path) -> None:
    program = tmp_path / "spawn.py"
    program.write_text(SPAWN)
    finished = subprocess.run(
        [sys.executable, program, tmp_path],
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert finished.returncode == 0, finished
    assert sorted(finished.stdout.split()) == ["0", "1", "refused", "refused"]


def test_the_environment_of_a_process_of_torch_is_refused(tmp_path: Path) -> None:
    """Before there is a group, and where there never is one: on the command line."""
    for name in ("RANK", "LOCAL_RANK"):
        environ = {name: OF_TORCH["RANK"], "WORLD_SIZE": OF_TORCH["WORLD_SIZE"]}
        finished = subprocess.run(
            [sys.executable, "-m", "qsparse", "train", "--data", "digits", "--out", str(tmp_path / "out")],
            env=clean_environment(environ),
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert finished.returncode == 1, finished
        assert "LaunchError: WORLD_SIZE announces 2 ranks, but" in finished.stderr
        assert "unsets WORLD_SIZE" in finished.stderr
        assert not (tmp_path / "out").exists()


def test_ranks_of_mpi_may_have_a_group_of_torch_beside(tmp_path: Path) -> None:
    """A group as large as MPI's world is no contradiction, nor is a part of it that trains apart."""
    program = """
        import os, sys
        import torch
        torch.set_num_threads(1)
        import torch.distributed as dist
        from mpi4py import MPI
        from qsparse.torch import attach
        from loops import batch, normed, step

        comm = MPI.COMM_WORLD
        os.environ.update(RANK=str(comm.rank), WORLD_SIZE=str(comm.size))
        dist.init_process_group(
            "gloo", init_method=f"file://{sys.argv[1]}/store", rank=comm.rank, world_size=comm.size
        )
        for world in (None, comm, MPI.COMM_SELF, comm.Split(comm.rank)):
            model = normed(1)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            with attach(model, optimizer, "sgd", world) as attached:
                step(model, optimizer, batch(0, 0, torch.float32))
            assert attached.wire.size == (2 if world is None or world == comm else 1)
        dist.destroy_process_group()
        print("trained", flush=True)
    """
    finished = mpi_run(2, program, tmp_path, timeout=200)
    assert finished.stdout.split() == ["trained"] * 2
