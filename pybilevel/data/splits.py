"""Disjoint class splits, and rotations as new classes."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from pybilevel.data.images import ClassImages

OMNIGLOT_CLASSES = 1623
OMNIGLOT_SIZES = (1100, 100, 423)
SPLIT_SEED = 1806_04910


@dataclass(frozen=True)
class Splits:
    """Three sets of images whose original characters are pairwise disjoint."""

    train: ClassImages
    validation: ClassImages
    test: ClassImages


def split_sizes(classes: int) -> tuple[int, int, int]:
    """Numbers of characters to train, validate and test on.

    All 1623 Omniglot characters: 1100, 100 and 423 (1200 to train and validate, 423 to test, as in the literature). Any
    other number: the same proportions, at least one each.
    """
    if classes < 3:
        raise ValueError(f"classes = {classes} is too few for three disjoint splits; at least 3 are needed.")
    if classes == OMNIGLOT_CLASSES:
        return OMNIGLOT_SIZES
    validation = max(1, round(classes * OMNIGLOT_SIZES[1] / OMNIGLOT_CLASSES))
    test = max(1, round(classes * OMNIGLOT_SIZES[2] / OMNIGLOT_CLASSES))
    return classes - validation - test, validation, test


def split(
    data: ClassImages,
    *,
    sizes: tuple[int, int, int] | None = None,
    rotations: bool = True,
    seed: int = SPLIT_SEED,
) -> Splits:
    """Shuffle the characters and cut them into train, validation and test.

    With `rotations`, the characters of train and validation are turned by 0, 90, 180 and 270 degrees and each turn is a
    class of its own (Santoro et al. 2016); characters are split before they are turned, so no turn of a test character
    is ever seen in training. The test characters stay upright. The seed is fixed by default, hence the split belongs to
    the data set, not to the run.

    Errors: ValueError if the sizes do not add up to at most the number of classes.
    """
    sizes = sizes or split_sizes(data.classes)
    if min(sizes) < 1 or sum(sizes) > data.classes:
        raise ValueError(f"sizes = {sizes} must be positive and sum to at most {data.classes} classes.")
    order = np.random.default_rng(seed).permutation(data.classes)
    cuts = np.cumsum((0, *sizes))
    train, validation, test = (data.take(order[a:b]) for a, b in itertools.pairwise(cuts))
    if rotations:
        train, validation = with_rotations(train), with_rotations(validation)
    return Splits(train, validation, test)


def with_rotations(data: ClassImages) -> ClassImages:
    """Four classes for each character: turned by 0, 90, 180 and 270 degrees. Memory: four times the images."""
    turned = [np.rot90(data.images, quarter, axes=(2, 3)) for quarter in range(4)]
    names = tuple(f"{name}/rot{90 * quarter:03d}" for quarter in range(4) for name in data.names)
    return ClassImages(np.ascontiguousarray(np.concatenate(turned)), names, data.source)
