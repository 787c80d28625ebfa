# Settings with which MPICH, Open MPI and Intel MPI behave on small and on shared machines.
# Source it:  . launch/env.sh     What is set already stays. `qsparse train --ranks N` sets the same.

# Threads of one rank, one unless OMP_NUM_THREADS says otherwise: without these every rank would take
# all cores for its linear algebra. More of them may change the last bits of a result.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
export OPENBLAS_NUM_THREADS="${OPENBLAS_NUM_THREADS:-${OMP_NUM_THREADS%%,*}}" # NumPy
export MKL_NUM_THREADS="${MKL_NUM_THREADS:-${OMP_NUM_THREADS%%,*}}"           # PyTorch
export NUMBA_NUM_THREADS="${NUMBA_NUM_THREADS:-${OMP_NUM_THREADS%%,*}}"       # the kernels of qsparse

# Open MPI refuses to start as root, which is the usual user in containers.
export OMPI_ALLOW_RUN_AS_ROOT="${OMPI_ALLOW_RUN_AS_ROOT:-1}"
export OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="${OMPI_ALLOW_RUN_AS_ROOT_CONFIRM:-1}"
# Open MPI: give up the core while waiting. It does so by itself only where it knows of the need.
export OMPI_MCA_mpi_yield_when_idle="${OMPI_MCA_mpi_yield_when_idle:-1}"
# Open MPI: without this component, which prints an error on machines without a fast network.
export OMPI_MCA_osc="${OMPI_MCA_osc:-^ucx}"
# Intel MPI: spin once, then give up the core.
export I_MPI_SPIN_COUNT="${I_MPI_SPIN_COUNT:-1}"
export I_MPI_THREAD_YIELD="${I_MPI_THREAD_YIELD:-2}"

# The rest is for one machine. In an allocation or with a host file it would put all ranks on the
# first machine, so it is left out there.
if [ -z "${SLURM_JOB_ID:-}${PBS_JOBID:-}${LSB_JOBID:-}${FLUX_JOB_ID:-}${HYDRA_HOST_FILE:-}${PRTE_MCA_prte_default_hostfile:-}" ]; then
    # Open MPI 5: more ranks than cores are allowed, and no rank is tied to one core.
    export PRTE_MCA_rmaps_default_mapping_policy="${PRTE_MCA_rmaps_default_mapping_policy:-:oversubscribe}"
    export PRTE_MCA_hwloc_default_binding_policy="${PRTE_MCA_hwloc_default_binding_policy:-none}"
    # Open MPI 4: the same.
    export OMPI_MCA_rmaps_base_oversubscribe="${OMPI_MCA_rmaps_base_oversubscribe:-1}"
    export OMPI_MCA_hwloc_base_binding_policy="${OMPI_MCA_hwloc_base_binding_policy:-none}"
    # MPICH: give up the core after every fruitless poll.
    export MPIR_CVAR_POLLS_BEFORE_YIELD="${MPIR_CVAR_POLLS_BEFORE_YIELD:-1}"
    export MPIR_CVAR_CH4_PROGRESS_THROTTLE="${MPIR_CVAR_CH4_PROGRESS_THROTTLE:-1}"
    export MPIR_CVAR_CH4_PROGRESS_THROTTLE_NO_PROGRESS_COUNT="${MPIR_CVAR_CH4_PROGRESS_THROTTLE_NO_PROGRESS_COUNT:-1}"
    # MPICH, Intel MPI: start ranks directly, without ssh.
    export HYDRA_LAUNCHER="${HYDRA_LAUNCHER:-fork}"
fi
