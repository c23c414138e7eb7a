#!/usr/bin/env bash
# Rounds between two hosts: two network namespaces of this machine, joined by a cable and then by a slow link. Root only.
set -euo pipefail

usage() {
    cat <<'TEXT'
Usage: benchmarks/two_hosts.sh [MBIT [DELAY_MS]]

Prints lines of JSON, first for a cable without limits, then for a link of MBIT Mbit/s (100) and DELAY_MS ms (10) each way. The link
is `tc ... netem` where the kernel has it, and otherwise benchmarks/slow_link.py, which takes a part of a core. Needs iproute2.
TEXT
}

clean_up() {
    local name pid
    if [[ -n "$link" ]]; then
        kill "$link" 2>/dev/null && wait "$link" || true
    fi
    for name in "$first" "$second"; do
        for pid in $(ip netns pids "$name" 2>/dev/null); do
            kill -KILL "$pid"
        done
        ip netns delete "$name" 2>/dev/null || true
    done
    rm -rf "$folder"
}

cable() {
    ip link add cable netns "$first" type veth peer name cable netns "$second"
    local name
    for name in "$first" "$second"; do
        ip -n "$name" address add "10.214.0.$([[ "$name" == "$first" ]] && echo 1 || echo 2)/24" dev cable
        ip -n "$name" link set cable up
    done
}

slow() {
    local limits=(root netem delay "${delay}ms" rate "${mbit}mbit")
    if ip netns exec "$first" tc qdisc add dev cable "${limits[@]}" 2>/dev/null; then
        ip netns exec "$second" tc qdisc add dev cable "${limits[@]}"
        kind=netem
        return
    fi
    ip -n "$first" link delete cable
    mkfifo "$folder/up"
    python -m benchmarks.slow_link "$first" "$second" --addresses 10.214.0.1/24 10.214.0.2/24 --mbit "$mbit" --delay-ms "$delay" \
        >"$folder/up" &
    link=$!
    read -r _ <"$folder/up"
    kind="user space"
}

measure() {
    local rank names=("$first" "$second")
    for rank in 1 0; do
        ip netns exec "${names[rank]}" env GLOO_SOCKET_IFNAME=cable OMP_NUM_THREADS=1 \
            python -m benchmarks.two_hosts --rank "$rank" --meet tcp://10.214.0.1:29500 "$@" &
    done
    wait %% # rank 0
}

if [[ "${1:-}" == -h ]]; then
    usage
    exit 0
elif ((EUID)); then
    echo "error: only root can make network namespaces" >&2
    exit 2
fi
mbit=${1:-100} delay=${2:-10}
first=two$$a second=two$$b link="" kind="" folder=$(mktemp -d)
trap clean_up EXIT
for name in "$first" "$second"; do
    ip netns add "$name"
    ip -n "$name" link set lo up
    # Most hosts' TCP; others take what this machine has, which a row tells.
    ip netns exec "$name" sh -c 'echo cubic >/proc/sys/net/ipv4/tcp_congestion_control' 2>/dev/null || true
done
cable
measure --link cable
slow
measure --link "$kind, $mbit Mbit/s, $delay ms" --mbit "$mbit" --delay-ms "$delay"
