"""IDX files, the format of MNIST and of those that took after it: a header of sizes, then the bytes of an array.

Y. LeCun, C. Cortes, C. J. C. Burges, "The MNIST Database of Handwritten Digits", 1998, http://yann.lecun.com/exdb/mnist/. A
file begins with two zeros, the type of its numbers (8: unsigned bytes) and the number of axes; then come the sizes of the axes,
32 bits each with the highest byte first, then the numbers, the last axis innermost.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from fl_lightning.errors import ConfigurationError, in_one_line

UNSIGNED_BYTES = 8


def idx_file(folder: str | Path, name: str) -> Path | None:
    """The file of this name in a folder, plain or compressed by gzip; None where there is neither.

    A dot may stand for the last hyphen, as some archives have it: `train-images.idx3-ubyte`.
    """
    dotted = name.replace("-idx", ".idx")
    for candidate in (name, f"{name}.gz", dotted, f"{dotted}.gz"):
        if (file := Path(folder) / candidate).is_file():
            return file
    return None


def read_idx(file: Path, axes: int) -> np.ndarray:
    """The array in a file, uint8 with this number of axes.

    Raises:
        ConfigurationError: if the file cannot be read, is no IDX file of unsigned bytes, has another number of axes, or holds
            more or fewer bytes than its header says.
    """
    remedy = "fetch it again or give another path"
    try:
        data = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    except (OSError, EOFError, MemoryError, zlib.error) as error:
        raise ConfigurationError(f"{file} cannot be read: {in_one_line(error)}; {remedy}") from error
    header = 4 + 4 * axes
    if data[:4] != (begin := bytes((0, 0, UNSIGNED_BYTES, axes)))[: len(data)]:
        raise ConfigurationError(
            f"{file} begins with the bytes {data[:4].hex(' ')}; an IDX file of unsigned bytes with {axes} axes begins with "
            f"{begin.hex(' ')}; {remedy}"
        )
    if len(data) < header:
        raise ConfigurationError(f"{file} ends after {len(data)} bytes of its header, which takes {header}; {remedy}")
    shape = struct.unpack(f">{axes}I", data[4:header])
    if math.prod(shape) != len(data) - header:
        raise ConfigurationError(
            f"{file} holds {len(data) - header} numbers, but by its header {' x '.join(map(str, shape))}; {remedy}"
        )
    return np.frombuffer(data, dtype=np.uint8, offset=header).reshape(shape)
