#!/usr/bin/env bash
# One process per GPU on one or several nodes, through torchrun.
set -euo pipefail

usage() {
    cat <<'TEXT'
Usage: launch/torchrun.sh COMMAND [ARGUMENT...]

Runs `torchrun -m fl_lightning COMMAND ARGUMENT...`, for example

  launch/torchrun.sh fit --config configs/quickstart.yaml
  NPROC=2 launch/torchrun.sh fit --config configs/quickstart.yaml
  NNODES=2 NODE_RANK=0 MASTER_ADDR=node0 launch/torchrun.sh fit --config configs/quickstart.yaml   # on node0
  NNODES=2 NODE_RANK=1 MASTER_ADDR=node0 launch/torchrun.sh fit --config configs/quickstart.yaml   # on node1

Environment:
  NPROC            processes on this node; default: the number of visible GPUs, 1 if there is none
  NNODES           nodes; default 1
  NODE_RANK        this node's number, from 0; default 0
  MASTER_ADDR      host name or address of node 0; needed if NNODES is more than 1
  MASTER_PORT      a free port on node 0; default 29500; not used on a single node
  MASTER_TIMEOUT   seconds that nodes wait for each other to start; default 600
  OMP_NUM_THREADS  threads per process; default 1

  GLOO_SOCKET_IFNAME  network interface of this node that ranks on CPUs use between nodes; default: that by which it reaches
                      node 0. (NCCL, on GPUs, finds one by itself, and has NCCL_SOCKET_IFNAME.)
TEXT
}

visible_gpus() {
    if [[ -n "${CUDA_VISIBLE_DEVICES+set}" ]]; then
        local devices
        IFS=, read -ra devices <<<"$CUDA_VISIBLE_DEVICES"
        if [[ "${devices[0]:-}" == -* ]]; then # -1 hides all GPUs
            echo 0
        else
            echo "${#devices[@]}"
        fi
    elif command -v nvidia-smi >/dev/null; then
        { nvidia-smi -L 2>/dev/null || true; } | grep -c '^GPU' || true # grep prints 0 where there is none
    else
        echo 0
    fi
}

# The interface by which this node reaches node 0, or others reach it; nothing where that is not to be found out. Without one gloo
# takes the address of the host's own name, which /etc/hosts often says is 127.0.1.1: other nodes then find nobody there.
interface() {
    local address source found
    address=$(getent ahosts "$MASTER_ADDR" | awk '{ print $1; exit }')
    source=$(ip route get "$address" 2>/dev/null | sed -n 's/.* src \([^ ]*\).*/\1/p')
    if [[ "$source" != 127.* && "$source" != ::1 ]]; then
        found=$(ip -o address show to "$source")
        awk '{ print $2; exit }' <<<"$found"
    elif ((node == 0)) && [[ "$MASTER_ADDR" != "$address" && "$MASTER_ADDR" != localhost ]]; then
        # Node 0 knows its own name by an address that the others cannot use.
        ip route show default | sed -n 's/.* dev \([^ ]*\).*/\1/p' | head -n 1
    fi
}

# Nodes start at different times, and node 0 may be elsewhere.
wait_for_node_0() {
    local deadline=$((SECONDS + patience))
    until timeout 5 bash -c "exec 3<>'/dev/tcp/$MASTER_ADDR/$port'" 2>/dev/null; do
        if ((SECONDS >= deadline)); then
            echo "error: nobody listens at $MASTER_ADDR, port $port, after $patience s: start node 0 there, see that MASTER_ADDR and" \
                "MASTER_PORT are the same on all nodes and that no firewall closes the port, or set MASTER_TIMEOUT to more" >&2
            exit 1
        fi
        sleep 0.5
    done
}

if [[ $# -eq 0 ]]; then
    usage >&2
    exit 2
elif [[ "$1" == -h ]]; then
    usage
    exit 0
fi

gpus=$(visible_gpus)
processes=${NPROC:-$((gpus > 0 ? gpus : 1))}
nodes=${NNODES:-1}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

if ((nodes == 1)); then
    where=(--standalone)
elif [[ -z "${MASTER_ADDR:-}" ]]; then
    echo "error: NNODES is $nodes, so MASTER_ADDR must name the host of node 0" >&2
    exit 2
elif command -v getent >/dev/null && ! getent ahosts "$MASTER_ADDR" >/dev/null; then
    echo "error: MASTER_ADDR is $MASTER_ADDR, which is no address, and no name that this node knows" >&2
    exit 2
else
    node=${NODE_RANK:-0} port=${MASTER_PORT:-29500} patience=${MASTER_TIMEOUT:-600}
    if [[ -z "${GLOO_SOCKET_IFNAME:-}" ]] && command -v ip >/dev/null; then
        found=$(interface || true)
        if [[ -n "$found" ]]; then
            export GLOO_SOCKET_IFNAME=$found
        fi
    fi
    if ((node > 0)) && command -v timeout >/dev/null; then
        wait_for_node_0
    fi
    where=(--node-rank "$node" --master-addr "$MASTER_ADDR" --master-port "$port" --rdzv-conf "timeout=$patience")
fi

exec torchrun "${where[@]}" --nnodes "$nodes" --nproc-per-node "$processes" -m fl_lightning "$@"
