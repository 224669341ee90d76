#!/bin/bash
# A job that goes on after its time limit, after preemption and after the loss of a node.
# Before the time is up SLURM signals this script; it tells the program, which finishes the particles
# in hand and leaves with exit status 75; the script puts the job back in the queue, under the same
# number; the next start does what is left. The result is the same to the byte.
# Submit from the RELION project directory:  sbatch resumable.sh
#SBATCH --signal=B:USR1@120
#SBATCH --open-mode=append
#SBATCH --requeue
# B:USR1@120: the signal goes to this script alone, 120 s before the end, or up to a minute earlier.
#
# ---- edit these lines ----
#SBATCH --job-name=extract
#SBATCH --time=01:00:00
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --mem-per-cpu=2G
#SBATCH --output=extract_%j.log
environment=/path/to/relion_pseudosubtomo-env
#module load openmpi
mpi=pmix    # Open MPI: pmix. MPICH, Intel MPI, Cray MPICH: pmi2. For one task in all: none.
input=Picks/job007/optimisation_set.star
output=PseudoSubtomo/job009/
options=(--b 192 --crop 96 --bin 4 --stack2d)
# ---- down to here ----

set -euo pipefail
export PATH=$environment/bin:$PATH
stopped=75    # exit status of the program after a signal
too_early=138 # and where the signal came before the program was ready for it

step=
signalled=
cancelled=
tell_step() { [ -z "$step" ] || kill -USR1 "$step" 2>/dev/null || true; }
trap 'signalled=1; tell_step' USR1
trap 'cancelled=1' TERM # scancel: the job is not wanted any more

# In the background: bash runs a trap only between commands, and would not come to it under a
# foreground srun. srun passes the signal on to all ranks.
srun --mpi="$mpi" --kill-on-bad-exit=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" \
    relion_pseudosubtomo --i "$input" --o "$output" --j "$SLURM_CPUS_PER_TASK" \
    --only_do_unfinished "${options[@]}" &
step=$!
[ -z "$signalled" ] || tell_step

# wait returns early, with a status above 128, whenever a trap has run; the step is still there then.
while true; do
    status=0
    wait "$step" || status=$?
    if [ "$status" -le 128 ] || ! kill -0 "$step" 2>/dev/null; then break; fi
done

if { [ "$status" -eq $stopped ] || [ "$status" -eq $too_early ]; } && [ -z "$cancelled" ]; then
    echo "Stopped by a signal, start $((${SLURM_RESTART_COUNT:-0} + 1)): back to the queue to go on"
    scontrol requeue "$SLURM_JOB_ID" ||
        echo "This cluster does not requeue: submit the script again, it goes on where it stopped" >&2
fi
exit "$status"
