#!/bin/bash
# Many nodes, ranks started by Open MPI's mpirun: where srun does not know your MPI, or MPI was
# installed with pip. Under mpirun a cancelled job is gone at once; what was finished stays valid.
# Submit from the RELION project directory:  sbatch many_nodes_mpirun.sh
#
# ---- edit these lines ----
#SBATCH --job-name=extract
#SBATCH --time=04:00:00
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=2
#SBATCH --cpus-per-task=8
#SBATCH --mem-per-cpu=2G
#SBATCH --output=extract_%j.log
environment=/path/to/relion_pseudosubtomo-env
#module load openmpi
binding=(--bind-to none)    # or, to pin each rank to cores of its own: (--map-by slot:PE=8)
input=Picks/job007/optimisation_set.star
output=PseudoSubtomo/job009/
options=(--b 192 --crop 96 --bin 4 --stack2d)
# ---- down to here ----

set -euo pipefail
export PATH=$environment/bin:$PATH

# No -n: mpirun asks SLURM for nodes and tasks. Without a binding of these two kinds Open MPI would tie
# each rank to one core, and its threads would take turns there.
mpirun "${binding[@]}" \
    relion_pseudosubtomo --i "$input" --o "$output" --j "$SLURM_CPUS_PER_TASK" "${options[@]}"
