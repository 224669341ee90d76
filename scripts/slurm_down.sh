#!/usr/bin/env bash
# Stops the SLURM that slurm_up.sh started, and its jobs: sudo bash scripts/slurm_down.sh
# Logs stay in $SLURM_TEST_DIR/log.
set -euo pipefail

directory=${SLURM_TEST_DIR:-${TMPDIR:-/tmp}/relion_pseudosubtomo-slurm}
stop_seconds=15
export SLURM_CONF=$directory/slurm.conf

# is_alive PID: whether that process runs (one that has ended and waits for its parent does not count).
is_alive() { [ -d "/proc/$1" ] && ! grep -q '^State:.*Z' "/proc/$1/status" 2>/dev/null; }

[ -e "$SLURM_CONF" ] || exit 0

# Jobs first, so that no step outlives its node.
if [ -e "$directory/run/slurmctld.pid" ]; then
    timeout 10 squeue -h -o %A | sort -u | xargs -r timeout 10 scancel || true
    for _ in $(seq $((stop_seconds * 5))); do
        [ -n "$(timeout 10 squeue -h -o %A 2>/dev/null)" ] || break
        sleep 0.2
    done
fi

# Then the daemons, by the process numbers that they wrote themselves; munge last.
for file in "$directory"/run/slurmd-*.pid "$directory"/run/slurmctld.pid "$directory"/run/munged.pid; do
    [ -s "$file" ] || continue
    pid=$(cat "$file")
    kill "$pid" 2>/dev/null || true
    for _ in $(seq $((stop_seconds * 5))); do
        is_alive "$pid" || break
        sleep 0.2
    done
    if is_alive "$pid"; then
        echo "slurm_down.sh: process $pid ($(basename "$file" .pid)) did not end: killed" >&2
        kill -KILL "$pid" 2>/dev/null || true
    fi
    rm -f "$file"
done
