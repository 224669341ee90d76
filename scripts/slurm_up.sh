#!/usr/bin/env bash
# Starts a real SLURM on this machine, for tests: sudo bash scripts/slurm_up.sh [NODES=1] [CPUS=4]
# NODES emulated nodes with CPUS processors each, all on the loopback interface. Needs root and
# Debian 12 or a relative: installs SLURM, munge, and Open MPI, whose ranks srun --mpi=pmix can start.
# Everything it keeps is in $SLURM_TEST_DIR, nothing in /etc/slurm or /etc/munge. Stop: slurm_down.sh.
# Exit status 77: SLURM cannot be installed here.
set -euo pipefail

nodes=${1:-1}
cpus=${2:-4}
directory=${SLURM_TEST_DIR:-${TMPDIR:-/tmp}/relion_pseudosubtomo-slurm}
first_port=27000 # nodes listen on the ports after it; the controller below it
start_seconds=30
# libpmix-dev: srun --mpi=pmix opens libpmix.so, a name that only the development package has
packages=(slurmctld slurmd slurm-client munge openmpi-bin libpmix-dev)

die() {
    echo "slurm_up.sh: $*" >&2
    exit 1
}

cannot_install() {
    echo "slurm_up.sh: SLURM cannot be installed here: $*" >&2
    exit 77
}

install_packages() {
    command -v apt-get >/dev/null || cannot_install "there is no apt-get"
    dpkg -s "${packages[@]}" >/dev/null 2>&1 && return
    echo "Installing ${packages[*]}"
    apt-get update -q >/dev/null || cannot_install "apt-get update failed"
    DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends \
        "${packages[@]}" >/dev/null || cannot_install "apt-get install failed"
}

# The daemons prove to each other who they are with munge: one of our own, with its own key and socket.
# --force: the socket may lie in a folder that only root can enter.
start_munge() {
    if [ ! -s "$directory/munge.key" ]; then
        (umask 077 && head -c 1024 /dev/urandom >"$directory/munge.key")
    fi
    munged --force --socket="$directory/munge.socket" --key-file="$directory/munge.key" \
        --pid-file="$directory/run/munged.pid" --log-file="$directory/log/munged.log" \
        --seed-file="$directory/munge.seed" 2>"$directory/log/munged.err" ||
        die "munged did not start: $(cat "$directory/log/munged.err")"
}

write_configuration() {
    # proctrack/linuxproc, task/none: no cgroups, which containers lack. config_overrides, RealMemory:
    # nodes may claim more than the machine has. KillWait: a cancelled step has 5 s to end by itself.
    cat <<CONFIGURATION
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$((first_port - 1))
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$directory/munge.socket
CredType=cred/munge
MpiDefault=pmix
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
ReturnToService=2
SlurmdParameters=config_overrides
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation=$directory/state
SlurmdSpoolDir=$directory/spool-%n
TmpFS=$directory/tmp-%n
SlurmctldPidFile=$directory/run/slurmctld.pid
SlurmdPidFile=$directory/run/slurmd-%n.pid
SlurmctldLogFile=$directory/log/slurmctld.log
SlurmdLogFile=$directory/log/slurmd-%n.log
KillWait=5
SlurmctldTimeout=30
SlurmdTimeout=30
MinJobAge=600
SchedulerParameters=bf_interval=5,sched_min_interval=0
CONFIGURATION
    local node
    for node in $(seq "$nodes"); do
        echo "NodeName=n$node NodeHostname=$host NodeAddr=127.0.0.1 Port=$((first_port + node))" \
            "CPUs=$cpus RealMemory=1000000 State=UNKNOWN"
    done
    echo "PartitionName=main Nodes=ALL Default=YES MaxTime=60 State=UP"
}

idle_nodes() { sinfo -h -t idle -o %D 2>/dev/null || true; }

[ "$(id -u)" -eq 0 ] || cannot_install "not root"
if [ -e "$directory/run/slurmctld.pid" ]; then
    die "SLURM is running already, or was not stopped: bash scripts/slurm_down.sh"
fi
install_packages
mkdir -p "$directory"/{state,log,run}
host=$(hostname -s)
getent hosts "$host" >/dev/null || echo "127.0.0.1 $host" >>/etc/hosts
start_munge
write_configuration >"$directory/slurm.conf"

export SLURM_CONF=$directory/slurm.conf
slurmctld -c -i # -c: forget the jobs of an earlier start
for node in $(seq "$nodes"); do
    mkdir -p "$directory/spool-n$node" "$directory/tmp-n$node"
    slurmd -c -N "n$node"
done
for _ in $(seq $((start_seconds * 5))); do
    if [ "$(idle_nodes)" = "$nodes" ]; then
        sinfo
        echo "SLURM is up. To use it: export SLURM_CONF=$SLURM_CONF"
        exit 0
    fi
    sleep 0.2
done
sinfo >&2 || true
tail -n 20 "$directory"/log/slurm*.log >&2
die "the nodes were not ready after $start_seconds s"
