#!/usr/bin/env bash
# A real Slurm cluster of two nodes on this machine, over loopback, for tests:
#
#     tools/slurm_cluster.sh start FOLDER      all its files live there; then: export SLURM_CONF=FOLDER/slurm.conf
#     tools/slurm_cluster.sh stop FOLDER
#
# Three partitions: `low` of two nodes, `high`, which takes them from `low` by requeueing what runs there, and `gpu`, of
# two others that say that they have 8 GPUs and bind each task to its CPUs. Needs root and Debian's packages: apt-get
# install slurm-wlm munge
set -euo pipefail
what=${1:-} folder=$(realpath -m "${2:-}")
[[ $# -eq 2 && ( $what == start || $what == stop ) ]] || { sed -n '2,9p' "$0"; exit 2; }

stop() {
    for pid in "$folder"/n[1-4].pid "$folder"/ctld.pid "$folder"/munge/munged.pid; do
        [[ -s $pid ]] && kill "$(cat "$pid")" 2>/dev/null || true
    done
    for pid in "$folder"/n[1-4].pid "$folder"/ctld.pid; do
        for _ in $(seq 100); do [[ -s $pid ]] && kill -0 "$(cat "$pid")" 2>/dev/null && sleep 0.1 || break; done
    done
}

start() {
    for program in munged slurmctld slurmd sbatch; do
        command -v $program > /dev/null || { echo "$program is not here: apt-get install slurm-wlm munge"; exit 1; }
    done
    mkdir -p "$folder/state" "$folder/munge"
    # a munge of its own, with a key and a socket in the folder
    dd if=/dev/urandom of="$folder/munge/key" bs=128 count=1 status=none
    chmod 711 "$folder"
    chown -R munge "$folder/munge"
    chmod 700 "$folder/munge/key" && chmod 600 "$folder/munge/key" && chmod 755 "$folder/munge"
    setpriv --reuid munge --regid munge --clear-groups munged --force --key-file="$folder/munge/key" \
        --socket="$folder/munge/socket" --pid-file="$folder/munge/munged.pid" --log-file="$folder/munge/munged.log" \
        --seed-file="$folder/munge/seed"
    local base=$((17000 + RANDOM % 2000 * 5))
    cat > "$folder/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=$(hostname)(127.0.0.1)
SlurmctldPort=$base
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket,cred_expire=5
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmctldPidFile=$folder/ctld.pid
SlurmdPidFile=$folder/%n.pid
SlurmdSpoolDir=$folder/spool_%n
StateSaveLocation=$folder/state
SlurmctldLogFile=$folder/ctld.log
SlurmdLogFile=$folder/%n.log
SlurmUser=root
ReturnToService=2
MpiDefault=none
KillWait=60
GresTypes=gpu
DebugFlags=NO_CONF_HASH
SchedulerParameters=sched_min_interval=500000,batch_sched_delay=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmdParameters=config_overrides
NodeName=n1 NodeHostname=$(hostname) NodeAddr=127.0.0.1 Port=$((base + 1)) CPUs=1 RealMemory=10000
NodeName=n2 NodeHostname=$(hostname) NodeAddr=127.0.0.1 Port=$((base + 2)) CPUs=1 RealMemory=10000
NodeName=n3 NodeHostname=$(hostname) NodeAddr=127.0.0.1 Port=$((base + 3)) CPUs=2 RealMemory=10000 Gres=gpu:8
NodeName=n4 NodeHostname=$(hostname) NodeAddr=127.0.0.1 Port=$((base + 4)) CPUs=2 RealMemory=10000 Gres=gpu:8
PartitionName=low Nodes=n1,n2 Default=YES PriorityTier=1 State=UP
PartitionName=high Nodes=n1,n2 PriorityTier=10 PreemptMode=OFF State=UP
PartitionName=gpu Nodes=n3,n4 PreemptMode=OFF State=UP
CONF
    for i in $(seq 0 7); do mknod "$folder/gpu$i" c 1 3; done  # each another /dev/null
    echo "NodeName=n[3-4] Name=gpu File=$folder/gpu[0-7]" > "$folder/gres.conf"
    mkdir -p "$folder/bound"
    sed 's,task/none,task/affinity,' "$folder/slurm.conf" > "$folder/bound/slurm.conf"
    cp "$folder/gres.conf" "$folder/bound/"
    export SLURM_CONF=$folder/slurm.conf
    slurmctld
    slurmd -N n1
    slurmd -N n2
    slurmd -N n3 -f "$folder/bound/slurm.conf"
    slurmd -N n4 -f "$folder/bound/slurm.conf"
    for _ in $(seq 300); do
        [[ $(sinfo --noheader --states=idle --Node --format=%N 2>/dev/null | sort -u | wc -l) == 4 ]] && return
        sleep 0.1
    done
    echo "the nodes did not come up; see $folder/*.log"
    sinfo || true
    stop
    exit 1
}

$what
