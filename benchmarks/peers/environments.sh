#!/usr/bin/env bash
# One virtual environment per peer, with versions that are known to work together on Python 3.11.
#
#   bash benchmarks/peers/environments.sh [FOLDER, .peers by default] [PYTHON, python3.11 by default]
set -euo pipefail

folder=${1:-.peers}
python=${2:-python3.11}
torch='torch==2.13.0'

# make NAME PACKAGES...: an environment that is there already is only brought up to date.
make() {
  local name=$1
  shift
  [ -x "$folder/$name/bin/python" ] || "$python" -m venv "$folder/$name"
  "$folder/$name/bin/python" -m pip install --quiet --disable-pip-version-check "$@"
}

mkdir -p "$folder"

# Without its dependencies, as torchvision would bring a torch of its own: the benchmark uses none of ByzFL's data sets.
make byzfl "$torch" 'numpy==2.4.6' 'scipy==1.17.1' 'matplotlib==3.11.2' 'seaborn==0.13.2'
make byzfl --no-deps 'byzfl==0.0.11'

make flower "$torch" 'flwr[simulation]==1.42.0' 'numpy==2.4.6'

make pfl "$torch" 'pfl[pytorch]==0.6.0' 'numpy==2.4.6'

# FedJAX calls `jax.tree_map`, which later releases of JAX lack.
make fedjax 'fedjax==0.0.17' 'jax==0.4.30' 'jaxlib==0.4.30' 'dm-haiku==0.0.12' 'optax==0.2.3' 'numpy==1.26.4'

echo "environments made in $folder: byzfl flower pfl fedjax"
