"""Images grouped by class: what the loaders return and the episode sampler draws from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class ClassImages:
    """A balanced set of grey images: `images[k, j]` is drawing j of class k.

    Shapes: images [classes, drawings, height, width], uint8, ink = 255 on paper = 0; names [classes].
    """

    images: Bytes
    names: tuple[str, ...]
    source: str

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.dtype != np.uint8:
            raise ValueError(
                f"images must be uint8 of shape [classes, drawings, height, width]; got {self.images.dtype} "
                f"of shape {list(self.images.shape)}."
            )
        if len(self.names) != len(self.images):
            raise ValueError(
                f"names must hold one name a class: {len(self.names)} names, {len(self.images)} classes."
            )

    @property
    def classes(self) -> int:
        """Number of classes."""
        return int(self.images.shape[0])

    @property
    def drawings(self) -> int:
        """Number of images in every class."""
        return int(self.images.shape[1])

    def take(self, classes: npt.NDArray[np.integer]) -> ClassImages:
        """The subset of classes at the given indices, in that order."""
        return ClassImages(self.images[classes], tuple(self.names[int(k)] for k in classes), self.source)

    def describe(self) -> str:
        """One line for people: source and sizes."""
        height, width = self.images.shape[2:]
        return f"{self.source}: {self.classes} characters x {self.drawings} drawings at {height} x {width}"
