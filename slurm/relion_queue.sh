#!/bin/bash
# Submission script for RELION's interface: Running tab, "Standard submission script" (see README.md).
# RELION fills in the words between XXX. It serves RELION's own CPU jobs as well.
#SBATCH --job-name=XXXnameXXX
#SBATCH --partition=XXXqueueXXX
#SBATCH --nodes=XXXnodesXXX
#SBATCH --mincpus=XXXdedicatedXXX
#SBATCH --ntasks=XXXmpinodesXXX
#SBATCH --cpus-per-task=XXXthreadsXXX
#SBATCH --output=XXXoutfileXXX
#SBATCH --error=XXXerrfileXXX
#SBATCH --open-mode=append
#
# ---- edit these lines ----
#SBATCH --time=24:00:00
#SBATCH --mem-per-cpu=2G
shim=/path/to/relion_pseudosubtomo/scripts/relion-shim
environment=/path/to/relion_pseudosubtomo-env
#module load relion openmpi
mpi=pmix    # Open MPI: pmix. MPICH, Intel MPI, Cray MPICH: pmi2.
# ---- down to here ----

set -euo pipefail
export PATH=$shim:$PATH RELION_PSEUDOSUBTOMO=$environment/bin/python

srun --mpi="$mpi" --kill-on-bad-exit=1 --cpus-per-task=XXXthreadsXXX XXXcommandXXX
