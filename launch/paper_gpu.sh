#!/usr/bin/env bash
# Fills what is missing of the paper's tables on the GPU at hand, for as long as it is there, and reports what there is.
set -euo pipefail

usage() {
    cat <<'TEXT'
Usage: launch/paper_gpu.sh [OPTION...]

Runs what is not finished of the paper's Tables 1 and 4 to 10 until the time is spent, and then writes their reports. What settles
most comes first: no attack, FedAvg, the invariant aggregator and its two parts alone (the trimmed mean, the mask), three seeds of
them; then the other rows of Table 1; then Tables 4 to 10, each with seed 0 before any has another seed. The same command goes on
the next time, on this machine or, with a copy of the folder of runs, on another. For example

  launch/paper_gpu.sh --budget 25m --runs runs --cifar10 data/cifar10 --southwest data/southwest --tasks cifar10

Options:
  --budget TIME     time for all runs, such as 90s, 25m, 2h or 1h30m; default 25m. What is running then ends after its round, and
                    reports take a few seconds a table more
  --runs DIR        folder of all runs; default runs
  --jobs N          runs at a time, which share the GPUs; default 1
  --tasks LIST      of cifar10, twitter and phishing, in this order; default "cifar10 twitter", as phishing trains on CPUs
  --tables LIST     of 1, 4, 5, 6, 7, 8, 9 and 10; what settles most of these comes first, the others in this order; default
                    "1 5 4 6 7 8 10 9"
  --cifar10 DIR     CIFAR-10;                       without these, data are fetched
  --southwest DIR   its edge cases, planes of Southwest Airlines
  --twitter DIR     Sentiment140
  --directors DIR   its edge cases, tweets on a director
  --glove FILE      GloVe's word vectors
  --dry-run         print the commands, and run nothing; needs no GPU
  -h, --help        print this

Exit status: 0 if the tables are full, 75 if time is what is missing, 1 if a run or a command failed, 2 for a mistake in the
options or if there is no GPU, 130 after Ctrl-C.
TEXT
}

fail() {
    echo "error: $*" >&2
    exit 2
}

# The seconds that a span of time such as 1h30m stands for.
seconds() {
    if [[ ! "$1" =~ ^(([0-9]{1,6})h)?(([0-9]{1,6})m)?(([0-9]{1,6})s)?$ || -z "$1" ]]; then
        fail "--budget '$1' is no span of time; give whole hours, minutes or seconds with their units, such as 2h, 25m or 1h30m"
    fi
    local hours=${BASH_REMATCH[2]:-0} minutes=${BASH_REMATCH[4]:-0} rest=${BASH_REMATCH[6]:-0}
    echo $((10#$hours * 3600 + 10#$minutes * 60 + 10#$rest))
}

# Prints a command, or runs it and keeps its exit status in `status`.
call() {
    status=0
    if [[ -n "$dry" ]]; then
        printf '%q ' "$@"
        echo
    else
        "$@" || status=$?
    fi
}

# The arguments by which a table's sweep finds its data, in `data`.
find_data() {
    local task=$1 table=$2
    data=()
    case $task in
    cifar10)
        [[ -z "$cifar10" ]] || data+=(--with "CIFAR10.path=$cifar10")
        [[ -z "$southwest" || "$table" == 9 ]] || data+=(--with "Southwest.path=$southwest") # Table 9 has no edge cases
        ;;
    twitter)
        [[ -z "$twitter" ]] || data+=(--with "Twitter.path=$twitter")
        [[ -z "$directors" ]] || data+=(--with "DirectorTweets.path=$directors")
        [[ -z "$glove" ]] || data+=(--with "Twitter.glove.path=$glove" --with "DirectorTweets.glove.path=$glove")
        ;;
    esac
}

budget=25m runs=runs jobs=1 dry='' cifar10='' southwest='' twitter='' directors='' glove=''
tasks='cifar10 twitter'
tables='1 5 4 6 7 8 10 9'
while [[ $# -gt 0 ]]; do
    case $1 in
    -h | --help)
        usage
        exit 0
        ;;
    --dry-run)
        dry=yes
        shift
        ;;
    --budget | --runs | --jobs | --tasks | --tables | --cifar10 | --southwest | --twitter | --directors | --glove)
        [[ -n "${2:-}" ]] || fail "$1 needs a value; see launch/paper_gpu.sh --help"
        printf -v "${1#--}" %s "$2"
        shift 2
        ;;
    *) fail "there is no option '$1'; see launch/paper_gpu.sh --help" ;;
    esac
done

total=$(seconds "$budget")
((total > 0)) || fail "--budget '$budget' must be at least 1s"
[[ "$jobs" =~ ^[1-9][0-9]{0,3}$ ]] || fail "--jobs must be a number of at least 1, got '$jobs'"
for task in $tasks; do
    [[ " cifar10 twitter phishing " == *" $task "* ]] || fail "--tasks: there is no task '$task'; known: cifar10, twitter, phishing"
done
for table in $tables; do
    [[ " 1 4 5 6 7 8 9 10 " == *" $table "* ]] || fail "--tables: there is no Table '$table'; known: 1, 4, 5, 6, 7, 8, 9, 10"
done
for path in "$cifar10" "$southwest" "$twitter" "$directors" "$glove"; do
    [[ -z "$path" || -e "$path" || -n "$dry" ]] || fail "there is no file or folder $path"
done
sweeps=$(cd "${BASH_SOURCE[0]%/*}/.." && pwd)/configs/sweeps

if [[ -z "$dry" ]]; then
    gpu=$(python -c 'import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else "")') ||
        fail "python cannot import torch; activate the environment that fl_lightning is installed in"
    [[ -n "$gpu" ]] || fail "PyTorch sees no GPU on this machine, and these tables are made for one. --dry-run prints the commands; sweeps" \
        "for CPUs are configs/sweeps/quickstart.yaml and those of configs/sweeps/phishing and digits"
    echo "$(date): $gpu, $budget"
fi

# Runs what is missing of a task's table, as far as labels (axis=label) choose it, in the order of its file's `priority`.
fill() {
    local task=$1 table=$2 file=$sweeps/$1/table$2.yaml only=() label
    shift 2
    [[ " $tables " == *" $table "* && -e "$file" ]] || return 0 # not asked for, or the paper has no such table of this task
    for label in "$@"; do
        only+=(--only "$label")
    done
    local left=$((end - SECONDS))
    ((left > 0)) || finish spent
    [[ " ${begun[*]-} " == *" $task/table$table "* ]] || begun+=("$task/table$table")
    find_data "$task" "$table"
    call python -m fl_lightning sweep "$file" "${only[@]}" --budget "${left}s" --runs "$runs" --jobs "$jobs" \
        ${data[@]+"${data[@]}"}
    case $status in
    0) ;;
    75) finish spent ;;
    130) exit 130 ;;
    *) failed=yes ;; # has said why; other runs may do better
    esac
}

# Reports what there is, and leaves with the status that --help tells; "spent" if time is what is missing.
finish() {
    local table
    for table in ${begun[@]+"${begun[@]}"}; do
        call python -m fl_lightning report "$sweeps/$table.yaml" --runs "$runs"
        ((status == 0)) || failed=yes
    done
    [[ -z "$failed" ]] || exit 1
    if [[ -n "$1" ]]; then
        echo "The time is spent; the same command goes on."
        exit 75
    fi
    exit 0
}

end=$((SECONDS + total)) failed='' begun=()
for seed in 0 1 2; do # whether the rule beats no defence, and both of its parts, is what all else rests on
    for task in $tasks; do
        fill "$task" 1 "seed=$seed" "rule=no attack" rule=FedAvg rule=Invariant rule=Trimmed-Mean
        fill "$task" 4 "seed=$seed" rule=AND-mask
    done
done
for seed in 0 1 2; do
    for task in $tasks; do
        fill "$task" 1 "seed=$seed"
    done
done
for seed in 0 1 2; do # one seed of every table says more than three seeds of one
    for table in $tables; do
        [[ "$table" != 1 ]] || continue
        for task in $tasks; do
            fill "$task" "$table" "seed=$seed"
        done
    done
done
finish ''
