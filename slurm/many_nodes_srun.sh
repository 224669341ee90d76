#!/bin/bash
# Many nodes, ranks started by srun: the better choice where the cluster's srun knows your MPI.
# Submit from the RELION project directory:  sbatch many_nodes_srun.sh
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
mpi=pmix    # Open MPI: pmix. MPICH, Intel MPI, Cray MPICH: pmi2. `srun --mpi=list` shows what there is.
input=Picks/job007/optimisation_set.star
output=PseudoSubtomo/job009/
options=(--b 192 --crop 96 --bin 4 --stack2d)
# ---- down to here ----

set -euo pipefail
export PATH=$environment/bin:$PATH

# -c has to be said again: srun does not take it over from sbatch. It binds each rank to its cores.
# Without --kill-on-bad-exit a rank that was killed, for too little memory say, would leave the others
# waiting until the time limit, where srun starts ranks by pmi2.
srun --mpi="$mpi" --kill-on-bad-exit=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" \
    relion_pseudosubtomo --i "$input" --o "$output" --j "$SLURM_CPUS_PER_TASK" "${options[@]}"
