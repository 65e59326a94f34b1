"""The 8 x 8 digits that come with scikit-learn: a labelled source that needs neither files nor network."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pybilevel.data.cache import DataError
from pybilevel.data.images import Bytes

HIGHEST = 16


def load_digits() -> tuple[Bytes, npt.NDArray[np.int64]]:
    """Images [1797, 8, 8], scaled to 0 .. 255, and labels [1797].

    Errors: DataError where scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits as load
    except ImportError as error:
        raise DataError(
            "scikit-learn is not installed: pip install 'pybilevel[experiments]', or pass --data DIR with IDX files."
        ) from error
    x, y = load(return_X_y=True)
    images = np.rint(np.asarray(x).reshape(-1, 8, 8) * (255 / HIGHEST)).astype(np.uint8)
    return images, np.asarray(y).astype(np.int64)
