#!/usr/bin/env bash
# torchrun --max-restarts: the processes of the second attempt read what the first wrote into its store.
#
# What one would expect: each attempt has a store of its own, as the comment in torch/distributed/rendezvous.py says ("a new TCPStore
# for every retry"), so that a process group is made as the first time.
# What happens: with the c10d rendezvous (--standalone, the default) the store of torchrun's own process is handed to the workers of all attempts. Gloo
# writes its addresses there under the same names in each attempt, so a process may read the address of one that has died: now and
# then the group is there, mostly it is "connectFullMesh failed ... Connection refused" until no restart is left.
# With TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 each attempt gets a store of its own.
#
# Versions: torch 2.13.0. Source: torch/distributed/elastic/rendezvous/dynamic_rendezvous.py, next_rendezvous.
#
# The script makes no process group, as whether that fails is a matter of time: it shows what is in the store. It exits 0 while that is
# as described, 1 when it has changed.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check torch==2.13.0 numpy

cat > attempt.py <<'PYTHON'
import os

from torch.distributed import rendezvous

attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
store, rank, world = next(rendezvous("env://"))  # as init_process_group gets it
print(f"attempt {attempt}: the first attempt's entry is there: {store.check(['written by attempt 0'])}", flush=True)
if attempt == 0:
    store.set("written by attempt 0", "the address of a process")
    raise SystemExit(3)
PYTHON

command=(timeout 300 venv/bin/torchrun --standalone --nproc-per-node 1 --max-restarts 1 attempt.py)
shared=$("${command[@]}" 2>/dev/null)
own=$(TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 "${command[@]}" 2>/dev/null)
printf 'by default:\n%s\nwith TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1:\n%s\n' "$shared" "$own"
of_second="attempt 1: the first attempt's entry is there"
if [[ $shared == *"$of_second: True" && $own == *"$of_second: False" ]]; then
    echo "as described"
else
    echo "this has changed" >&2
    exit 1
fi
