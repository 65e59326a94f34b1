"""Labelled examples for hyper-cleaning: a source, disjoint parts, and labels replaced at random."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pybilevel.data.cache import DataError
from pybilevel.data.digits import load_digits
from pybilevel.data.idx import load_mnist

# Shares of training, validation and test; at most MOST examples of the first two.
SHARES = (0.5, 0.25)
MOST = (5000, 5000)


@dataclass(frozen=True)
class NoisyData:
    """Three disjoint parts; `train_y` holds the given labels, `clean` says which of them are right.

    Shapes: x [n, d] in float32, 0 .. 1; labels [n] int64; clean [n] bool.
    """

    train_x: Tensor
    train_y: Tensor
    clean: Tensor
    validation_x: Tensor
    validation_y: Tensor
    test_x: Tensor
    test_y: Tensor
    classes: int
    source: str

    def describe(self) -> str:
        """One line for people."""
        wrong = int((~self.clean).sum())
        return (
            f"{self.source}: {len(self.train_y)} training examples ({wrong} of them with a wrong label), "
            f"{len(self.validation_y)} for validation, {len(self.test_y)} for test; {self.train_x.shape[1]} features"
        )


def noisy_data(data: str | None, *, noise: float, seed: int) -> NoisyData:
    """Load a source, split it, and replace a share `noise` of the training labels.

    data: None for scikit-learn's digits, else a folder with MNIST's IDX files. A replaced label is drawn uniformly from
    all classes, so one in `classes` of them is right by chance and counts as clean. Validation and test stay clean.
    Errors: DataError for missing or unfit files, ValueError for a noise outside [0, 1].
    """
    if not 0 <= noise <= 1:
        raise ValueError(f"noise = {noise} must be between 0 and 1.")
    images, labels = load_digits() if data is None else load_mnist(_folder(data))
    source = "digits of scikit-learn" if data is None else f"MNIST ({len(labels)} images)"
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(labels))
    first, second = (min(int(share * len(labels)), most) for share, most in zip(SHARES, MOST, strict=True))
    if not second > 0 or len(labels) <= first + second:
        raise DataError(f"{source} is too small to be split in three.")
    train, validation, test = np.split(order, [first, first + second])
    classes = int(labels.max()) + 1
    given = _replaced(labels[train], noise, classes, rng)

    def x(rows: npt.NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(images[rows].reshape(len(rows), -1).astype(np.float32) / 255)

    return NoisyData(
        train_x=x(train),
        train_y=torch.from_numpy(given),
        clean=torch.from_numpy(given == labels[train]),
        validation_x=x(validation),
        validation_y=torch.from_numpy(labels[validation]),
        test_x=x(test),
        test_y=torch.from_numpy(labels[test]),
        classes=classes,
        source=source,
    )


def _replaced(
    labels: npt.NDArray[np.int64], noise: float, classes: int, rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Labels of which a share `noise`, chosen at random, is drawn anew."""
    given = labels.copy()
    chosen = rng.permutation(len(labels))[: round(noise * len(labels))]
    given[chosen] = rng.integers(0, classes, len(chosen))
    return given


def _folder(data: str) -> Path:
    folder = Path(data).expanduser()
    if not folder.is_dir():
        raise DataError(f"--data {data} is not a folder. Leave --data out for scikit-learn's digits.")
    return folder
