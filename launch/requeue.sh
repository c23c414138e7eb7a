#!/usr/bin/env bash
# Runs the command of a SLURM batch script, and requeues the job when SLURM says that its time is up.
set -euo pipefail

usage() {
    cat <<'TEXT'
Usage: exec launch/requeue.sh COMMAND [ARGUMENT...]

For the end of a batch script that was submitted with `--requeue --signal=B:USR1@SECONDS`. Runs COMMAND and exits with its
status. On SIGUSR1, which SLURM sends SECONDS before the time limit, and at preemption where it is set up to, the job goes back
into the queue, with its number, as `scontrol requeue` does: SLURM ends COMMAND and starts the script anew when there is room.
A requeued run goes on after the round in which SIGTERM came to it, or the last checkpoint: see docs/howto/resuming.md.
TEXT
}

# shellcheck disable=SC2317 # a trap calls it
requeue() {
    signalled=yes
    echo "$(date): SLURM is about to end job $job; it goes back into the queue" >&2
    scontrol requeue "$job" || echo "error: job $job cannot be requeued; submit it again, and it goes on where it was" >&2
}

if [[ $# -eq 0 ]]; then
    usage >&2
    exit 2
elif [[ "$1" == -h ]]; then
    usage
    exit 0
fi

# In an array every task goes back by itself.
job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}}
job=${job:-${SLURM_JOB_ID:?is not set: this is for jobs of SLURM}}

# bash runs a trap between commands, or in `wait`.
trap requeue USR1
"$@" &
command=$!
signalled=yes
while [[ -n "$signalled" ]]; do # a signal ends `wait`, but not the command
    signalled=
    status=0
    wait "$command" || status=$?
done
exit "$status"
