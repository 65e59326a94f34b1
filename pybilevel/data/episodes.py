"""Seeded sampling of few-shot episodes, vectorised over a whole meta-batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pybilevel.data.images import Bytes

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class EpisodeShape:
    """Sizes of an episode: `ways` classes, `shots` support and `queries` query images a class."""

    ways: int
    shots: int
    queries: int

    def __post_init__(self) -> None:
        for name in ("ways", "shots", "queries"):
            value = getattr(self, name)
            if value < 1:
                raise ValueError(f"{name} = {value} must be at least 1.")

    @property
    def images(self) -> int:
        """Images in one episode."""
        return self.ways * (self.shots + self.queries)


@dataclass(frozen=True)
class EpisodeIndices:
    """Rows of the flattened image table [classes * drawings] for a meta-batch of B episodes.

    Shapes: support [B, ways * shots], query [B, ways * queries], and their labels of the same shapes, 0 .. ways - 1.
    """

    ways: int
    support: Indices
    support_y: Indices
    query: Indices
    query_y: Indices


@dataclass(frozen=True)
class Episodes:
    """A meta-batch as tensors: support [B, n, h, w] and query [B, m, h, w], uint8; labels [B, n] and [B, m], int64."""

    ways: int
    support: Tensor
    support_y: Tensor
    query: Tensor
    query_y: Tensor

    def chunks(self, count: int) -> list[Episodes]:
        """The meta-batch cut into at most `count` parts of nearly equal numbers of episodes."""
        tensors = (self.support, self.support_y, self.query, self.query_y)
        parts = zip(*(tensor.tensor_split(min(count, len(tensor))) for tensor in tensors), strict=True)
        return [Episodes(self.ways, *part) for part in parts]


class EpisodeSampler:
    """Draws meta-batches of episodes: classes without replacement, then drawings without replacement.

    Random numbers come from one PCG64 stream, so the seed decides the whole sequence, and `state` / `restore` continue
    it exactly. Cost: O(B * classes) random numbers a meta-batch, no loop over images.

    Errors: ValueError where the data have fewer classes than `ways`, or fewer drawings than `shots + queries`.
    """

    def __init__(self, classes: int, drawings: int, shape: EpisodeShape, seed: int) -> None:
        if classes < shape.ways:
            raise ValueError(
                f"ways = {shape.ways} exceeds the {classes} classes of this split; lower --ways."
            )
        if drawings < shape.shots + shape.queries:
            raise ValueError(
                f"shots + queries = {shape.shots} + {shape.queries} exceeds the {drawings} drawings of a class; "
                "lower --shots or --queries."
            )
        self.classes = classes
        self.drawings = drawings
        self.shape = shape
        self._rng = np.random.Generator(np.random.PCG64(seed))

    def indices(self, episodes: int) -> EpisodeIndices:
        """The next `episodes` episodes as image indices."""
        shape, rng = self.shape, self._rng
        classes = _choose(rng, (episodes,), self.classes, shape.ways)
        drawings = _choose(rng, (episodes, shape.ways), self.drawings, shape.shots + shape.queries)
        rows = classes[:, :, None] * self.drawings + drawings
        labels = np.arange(shape.ways, dtype=np.int64)
        return EpisodeIndices(
            ways=shape.ways,
            support=rows[:, :, : shape.shots].reshape(episodes, -1),
            support_y=np.tile(np.repeat(labels, shape.shots), (episodes, 1)),
            query=rows[:, :, shape.shots :].reshape(episodes, -1),
            query_y=np.tile(np.repeat(labels, shape.queries), (episodes, 1)),
        )

    def state(self) -> dict[str, Any]:
        """The position in the random stream, as plain JSON values."""
        return dict(self._rng.bit_generator.state)

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a saved `state`."""
        self._rng.bit_generator.state = state


class EpisodeTable:
    """The images of one split as a flat table on a device, and the gather from indices to tensors."""

    def __init__(self, images: Bytes, device: torch.device | str = "cpu") -> None:
        classes, drawings, height, width = images.shape
        self.classes = classes
        self.drawings = drawings
        self._rows = torch.from_numpy(images.reshape(classes * drawings, height, width)).to(device)

    def rows(self, indices: Indices) -> Tensor:
        """The images [*indices.shape, height, width] at the given rows, uint8."""
        return self._rows[torch.from_numpy(indices).to(self._rows.device)]

    def gather(self, indices: EpisodeIndices) -> Episodes:
        """The images and labels of the given indices; one gather for the support, one for the queries."""
        device = self._rows.device
        support_y, query_y = (
            torch.from_numpy(part).to(device) for part in (indices.support_y, indices.query_y)
        )
        support, query = self.rows(indices.support), self.rows(indices.query)
        return Episodes(indices.ways, support, support_y, query, query_y)


def _choose(rng: np.random.Generator, batch: tuple[int, ...], population: int, count: int) -> Indices:
    """`count` of `population` without replacement in random order, independently over `batch`: [*batch, count]."""
    keys = rng.random((*batch, population), dtype=np.float32)
    if count < population:
        chosen = np.argpartition(keys, count - 1, axis=-1)[..., :count]
    else:
        chosen = np.broadcast_to(np.arange(population), keys.shape)
    order = np.argsort(np.take_along_axis(keys, chosen, axis=-1), axis=-1, kind="stable")
    return np.take_along_axis(chosen, order, axis=-1).astype(np.int64)
