#!/usr/bin/env bash
# HDBSCAN finds other clusters when the same points come in another order.
#
# What one would expect: clusters of a matrix of distances are a matter of the distances. Whoever puts the points in another order
# gets the same groups, with labels that may be called otherwise. Defences that cluster clients rely on it: the order of clients in
# a round means nothing.
# What happens: of four points, two of which are nearer to each other than all other pairs, which are equally far, one order gives
# a single cluster of all four, another the near pair and two outliers. Equal distances are joined one after the other, in an order
# that follows from that of the rows. Ties are the rule where distances are shares of votes, as when clusterings are merged.
#
# Versions: scikit-learn 1.9.1 (sklearn.cluster.HDBSCAN, metric="precomputed", allow_single_cluster=True). Source: the minimum spanning
# tree in sklearn/cluster/_hdbscan/_linkage.pyx takes the first of equal edges, and the hierarchy is built edge by edge.
#
# Exits 0 while that is so, 1 when it has changed.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check scikit-learn==1.9.1

cat > orders.py <<'PYTHON'
from itertools import permutations

import numpy as np
from sklearn.cluster import HDBSCAN

distances = np.ones((4, 4)) - np.eye(4)
distances[2, 3] = distances[3, 2] = 2 / 3
found = {}
for order in map(list, permutations(range(4))):
    clustering = HDBSCAN(min_cluster_size=2, min_samples=1, metric="precomputed", allow_single_cluster=True, copy=True)
    labels = clustering.fit_predict(distances[np.ix_(order, order)])
    groups = frozenset(frozenset(i for i, of in zip(order, labels) if of == label) for label in set(labels.tolist()) - {-1})
    found.setdefault(groups, []).append(order)
for groups, orders in found.items():
    print("clusters", sorted(map(sorted, groups)), "in", len(orders), "of 24 orders, such as", orders[0])
raise SystemExit(0 if len(found) > 1 else 1)
PYTHON

if venv/bin/python orders.py; then
    echo "as described"
else
    echo "this has changed" >&2
    exit 1
fi
