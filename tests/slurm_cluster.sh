#!/usr/bin/env bash
# A real Slurm cluster of one node for the tests: munged, slurmctld and slurmd as root, without systemd or cgroups.
#   slurm_cluster.sh install       the packages (Debian, Ubuntu), about ten seconds
#   slurm_cluster.sh start FOLDER  configuration, keys, sockets and logs go to FOLDER; prints the file for SLURM_CONF
#   slurm_cluster.sh stop FOLDER   cancels all jobs, ends the three daemons
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin
command=${1:-help} folder=$(realpath -m "${2:-.}") host=$(hostname -s)
export SLURM_CONF=$folder/slurm.conf

running() { [ -s "$folder/$1.pid" ] && [ "$(cat "/proc/$(cat "$folder/$1.pid")/comm" 2>/dev/null)" = "$1" ]; }

until_true() { # until_true SECONDS COMMAND...
    local end=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        ((SECONDS < end)) || { echo "gave up waiting for: $*" >&2; return 1; }
        sleep 0.1
    done
}

idle() { [ "$(sinfo -h -o %t)" = idle ]; }

configure() {
    local memory port
    memory=$(awk '/MemTotal/ {print int($2 / 1024 * 0.9)}' /proc/meminfo)
    port=$((20000 + $$ % 20000)) # two suites on one machine do not meet
    mkdir -p "$folder"/{state,spool,munge}
    chmod 700 "$folder/munge"
    head -c 128 /dev/urandom >"$folder/munge/key"
    chmod 400 "$folder/munge/key"
    # The node claims eight cores, so that jobs run side by side on two. cred_expire: a requeued job waits that long
    # (120 s by default). No accounting, no cgroups.
    cat >"$SLURM_CONF" <<CONF
ClusterName=tests
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmdPort=$((port + 1))
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket,cred_expire=5
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,sched_min_interval=0,batch_sched_delay=0
PriorityType=priority/basic
ReturnToService=2
KillWait=30
MinJobAge=600
InactiveLimit=0
SlurmdParameters=config_overrides
NodeName=$host NodeAddr=127.0.0.1 CPUs=8 RealMemory=$memory State=UNKNOWN
PartitionName=tests Nodes=$host Default=YES MaxTime=INFINITE DefMemPerCPU=64 State=UP
CONF
    echo CgroupAutomount=no >"$folder/cgroup.conf"
}

case $command in
install)
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends slurm-wlm munge
    ;;
start)
    trap '"$0" stop "$folder"' ERR
    configure
    munged --force --key-file="$folder/munge/key" --socket="$folder/munge/socket" --pid-file="$folder/munged.pid" \
        --log-file="$folder/munged.log" --seed-file="$folder/munge/seed"
    until_true 10 test -S "$folder/munge/socket"
    slurmctld -c
    until_true 20 scontrol ping
    slurmd -c -N "$host"
    until_true 30 idle
    echo "$SLURM_CONF"
    ;;
stop)
    squeue -h -o %A | sort -u | xargs -r scancel --signal=KILL --full || true
    squeue -h -o %A | sort -u | xargs -r scancel || true
    for name in slurmd slurmctld munged; do
        if running "$name"; then
            pid=$(cat "$folder/$name.pid")
            kill "$pid"
            until_true 10 bash -c "! kill -0 $pid" || kill -KILL "$pid" || true
        fi
    done
    ;;
*)
    sed -n '2,5p' "$0"
    exit 2
    ;;
esac
