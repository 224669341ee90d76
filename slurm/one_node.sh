#!/bin/bash
# One node, one process, many threads. Needs no MPI. Start here: for most data sets this is enough.
# Submit from the RELION project directory:  sbatch one_node.sh
#SBATCH --nodes=1
#SBATCH --ntasks=1
#
# ---- edit these lines ----
#SBATCH --job-name=extract
#SBATCH --time=04:00:00
#SBATCH --cpus-per-task=16
#SBATCH --mem=32G
#SBATCH --output=extract_%j.log
environment=/path/to/relion_pseudosubtomo-env
input=Picks/job007/optimisation_set.star
output=PseudoSubtomo/job009/
options=(--b 192 --crop 96 --bin 4 --stack2d)
# ---- down to here ----

set -euo pipefail
export PATH=$environment/bin:$PATH

# srun, so that SLURM's signals reach the program itself: at the time limit it stops in order.
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" \
    relion_pseudosubtomo --i "$input" --o "$output" --j "$SLURM_CPUS_PER_TASK" "${options[@]}"
