"""Reader of the IDX format of MNIST (big-endian header, then raw values), plain or gzipped.

Source: Y. LeCun, C. Cortes, C. Burges, *The MNIST database*: magic number 0, 0, type, dimensions; then the sizes.
"""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pybilevel.data.cache import DataError
from pybilevel.data.images import Bytes

UNSIGNED_BYTE = 0x08
PARTS = ("train", "t10k")


def read_idx(path: Path) -> Bytes:
    """The array of an IDX file of unsigned bytes.

    Errors: DataError for other types, a truncated file, or something else than IDX.
    """
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as file:
            raw = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot read {path}: {error}. Is the file complete?") from error
    if len(raw) < 4 or raw[0] or raw[1] or raw[2] != UNSIGNED_BYTE:
        raise DataError(f"{path} is not an IDX file of unsigned bytes (it starts with {raw[:4].hex(' ')}).")
    start = 4 + 4 * raw[3]
    shape = tuple(int.from_bytes(raw[4 + 4 * k : 8 + 4 * k], "big") for k in range(raw[3]))
    if len(raw) - start != math.prod(shape):
        raise DataError(f"{path} holds {len(raw) - start} bytes but its header says {list(shape)}.")
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape)


def load_mnist(folder: Path) -> tuple[Bytes, npt.NDArray[np.int64]]:
    """Images [n, rows, columns] and labels [n] of every MNIST part found in a folder: train, t10k, or both.

    Errors: DataError naming the files it looked for.
    """
    images, labels = [], []
    for part in PARTS:
        files = [_find(folder, f"{part}-{kind}-ubyte") for kind in ("images-idx3", "labels-idx1")]
        if None in files:
            continue
        x, y = (read_idx(file) for file in files if file is not None)
        if x.ndim != 3 or y.shape != x.shape[:1]:
            raise DataError(
                f"{folder}: images {list(x.shape)} and labels {list(y.shape)} of '{part}' do not match."
            )
        images.append(x)
        labels.append(y.astype(np.int64))
    if not images:
        raise DataError(
            f"no MNIST files in {folder}: expected t10k-images-idx3-ubyte[.gz] with t10k-labels-idx1-ubyte[.gz], or "
            "the same for train. Pass the folder that holds them as --data, or leave --data out."
        )
    return np.concatenate(images), np.concatenate(labels)


def _find(folder: Path, name: str) -> Path | None:
    """The file `name`, with or without .gz, also spelled with a dot (`images.idx3`)."""
    for candidate in (name, name.replace("-idx", ".idx")):
        for suffix in ("", ".gz"):
            path = folder / f"{candidate}{suffix}"
            if path.is_file():
                return path
    return None
