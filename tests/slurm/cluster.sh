#!/usr/bin/env bash
# A whole SLURM on this one machine, for tests: munged, slurmctld and two slurmd, with all they read and write in one folder.
set -euo pipefail

usage() {
    cat <<'TEXT'
Usage: tests/slurm/cluster.sh start FOLDER | stop FOLDER

`start` makes FOLDER, which must have a short path (a socket lies in it), and starts a cluster of the nodes n0 and n1 with four
CPUs each, whatever this machine has. It returns once jobs can be submitted; SLURM's commands find it by

  export SLURM_CONF=FOLDER/slurm.conf

`stop` ends all jobs and daemons of that cluster and leaves FOLDER with its logs. Needs root, slurm-wlm and munge. Ports are
free ones, and nothing outside FOLDER is touched, so that several clusters can run side by side.
TEXT
}

free_ports() {
    python3 - "$1" <<'PYTHON'
import socket, sys
taken = [socket.socket() for _ in range(int(sys.argv[1]))]
for one in taken:
    one.bind(("", 0))
print(*(one.getsockname()[1] for one in taken))
PYTHON
}

start() {
    mkdir -p "$folder"/{state,spool.n0,spool.n1}
    local ports
    read -ra ports < <(free_ports 3)
    head -c 1024 /dev/urandom >"$folder/munge.key"
    chmod 600 "$folder/munge.key"
    # cred_expire: a requeued job waits until its old credential has run out, two minutes unless told otherwise.
    # config_overrides: believe the CPUs given here rather than count them.
    cat >"$SLURM_CONF" <<TEXT
ClusterName=test
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=${ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket,cred_expire=5
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,sched_min_interval=10000,batch_sched_delay=0,bf_interval=2
JobRequeue=1
KillWait=2
MinJobAge=300
MaxArraySize=8
ReturnToService=2
MailProg=/bin/true
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool.%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.%n.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.%n.log
SlurmctldDebug=verbose
SlurmdDebug=verbose
NodeName=n0 NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 Port=${ports[1]} CPUs=4
NodeName=n1 NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 Port=${ports[2]} CPUs=4
PartitionName=all Nodes=ALL Default=YES State=UP
TEXT
    # --force: the folder may lie in one that only root can enter
    if ! { munged --force --socket "$folder/munge.socket" --key-file "$folder/munge.key" --pid-file "$folder/munged.pid" \
        --log-file "$folder/munged.log" --seed-file "$folder/munged.seed" --num-threads 2 &&
        slurmctld && slurmd -N n0 && slurmd -N n1 && up; }; then
        tail -n 20 "$folder"/*.log >&2 || true
        stop
        echo "error: the cluster in $folder did not come up; its logs stand above" >&2
        exit 1
    fi
}

# Waits until both nodes take jobs.
up() {
    for _ in {1..300}; do
        if [[ $(sinfo --noheader --Node --format %T 2>/dev/null) == $'idle\nidle' ]]; then
            return
        fi
        sleep 0.1
    done
    return 1
}

# Processes of this cluster: it was started, like all of its jobs, with SLURM_CONF in the environment.
members() {
    local process
    for process in /proc/[0-9]*; do
        if grep -qzxF "SLURM_CONF=$SLURM_CONF" "$process/environ" 2>/dev/null &&
            { grep -qz '^SLURM_JOB_ID=' "$process/environ" || grep -qE '^(munged|slurm)' "$process/comm"; } 2>/dev/null; then
            echo "${process#/proc/}"
        fi
    done
}

stop() {
    timeout 5 scancel --user root 2>/dev/null || true
    local signal pids
    for signal in TERM KILL; do
        for _ in {1..50}; do
            mapfile -t pids < <(members)
            if [[ ${#pids[@]} -eq 0 ]]; then
                return
            fi
            kill -s "$signal" "${pids[@]}" 2>/dev/null || true
            sleep 0.1
        done
    done
    echo "error: of the cluster in $folder, these processes do not end: ${pids[*]}" >&2
    exit 1
}

if [[ $# -ne 2 || ! "$1" =~ ^(start|stop)$ ]]; then
    usage >&2
    exit 2
fi
mkdir -p "$2"
folder=$(cd "$2" && pwd)
export SLURM_CONF=$folder/slurm.conf
"$1"
