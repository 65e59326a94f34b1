"""Splits, rotations and the episode sampler."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pybilevel.data.episodes import EpisodeSampler, EpisodeShape, EpisodeTable
from pybilevel.data.images import ClassImages
from pybilevel.data.splits import split, split_sizes, with_rotations

SHAPE = EpisodeShape(ways=3, shots=2, queries=4)


def marked(classes: int, drawings: int = 6) -> ClassImages:
    """Images that say in their corners which class and drawing they are."""
    images = np.zeros((classes, drawings, 4, 4), np.uint8)
    images[:, :, 0, 0] = np.arange(classes)[:, None]
    images[:, :, 0, 1] = np.arange(drawings)
    return ClassImages(images, tuple(f"c{k}" for k in range(classes)), "marked")


def test_omniglot_is_split_1100_100_423() -> None:
    assert split_sizes(1623) == (1100, 100, 423)


@pytest.mark.parametrize("classes", [3, 7, 100, 964])
def test_other_sizes_are_split_in_proportion(classes: int) -> None:
    sizes = split_sizes(classes)
    assert sum(sizes) == classes
    assert min(sizes) >= 1


def test_splits_are_disjoint_and_stable_with_rotations_only_where_trained() -> None:
    splits = split(marked(50))
    original = [
        {name.split("/")[0] for name in part.names} for part in (splits.train, splits.validation, splits.test)
    ]
    assert sum(map(len, original)) == len(set.union(*original)) == 50
    assert [splits.train.classes, splits.validation.classes] == [4 * len(original[0]), 4 * len(original[1])]
    assert splits.test.classes == len(original[2])
    assert split(marked(50)).train.names == splits.train.names


def test_rotations_turn_the_images() -> None:
    data = marked(2)
    turned = with_rotations(data)
    assert turned.names[:3] == ("c0/rot000", "c1/rot000", "c0/rot090")
    for quarter in range(4):
        np.testing.assert_array_equal(turned.images[2 * quarter + 1, 5], np.rot90(data.images[1, 5], quarter))


def test_wrong_sizes_are_clear_errors() -> None:
    with pytest.raises(ValueError, match="at least 3"):
        split_sizes(2)
    with pytest.raises(ValueError, match="at most 5 classes"):
        split(marked(5), sizes=(3, 2, 1))
    with pytest.raises(ValueError, match="ways = 3 exceeds the 2 classes"):
        EpisodeSampler(2, 20, SHAPE, 0)
    with pytest.raises(ValueError, match=r"2 \+ 4 exceeds the 5 drawings"):
        EpisodeSampler(9, 5, SHAPE, 0)
    with pytest.raises(ValueError, match="shots = 0"):
        EpisodeShape(5, 0, 15)


def test_labels_name_classes_and_no_image_comes_twice() -> None:
    table = EpisodeTable(marked(7).images)
    batch = table.gather(EpisodeSampler(7, 6, SHAPE, 0).indices(40))
    assert batch.support.shape == (40, 6, 4, 4)
    assert batch.query.shape == (40, 12, 4, 4)
    for j in range(40):
        classes = [{int(c) for c in batch.support[j, batch.support_y[j] == k, 0, 0]} for k in range(3)]
        assert all(len(c) == 1 for c in classes)
        assert len(set.union(*classes)) == 3, "classes are distinct"
        for k in range(3):
            assert {int(c) for c in batch.query[j, batch.query_y[j] == k, 0, 0]} == classes[k]
        drawn = [tuple(image[0, :2].tolist()) for part in (batch.support, batch.query) for image in part[j]]
        assert len(set(drawn)) == 18, "support and queries are disjoint"


def test_sampling_is_uniform_over_classes_and_positions() -> None:
    rows = EpisodeSampler(6, 6, EpisodeShape(2, 1, 1), 3).indices(6000)
    for position in range(2):
        counts = np.bincount(rows.support[:, position] // 6, minlength=6)
        np.testing.assert_allclose(counts, 1000, atol=150)
    np.testing.assert_allclose(np.bincount(rows.query[:, 0] % 6, minlength=6), 1000, atol=150)


def test_all_classes_and_all_drawings_can_be_used() -> None:
    rows = EpisodeSampler(3, 6, SHAPE, 0).indices(5)
    everything = np.sort(np.concatenate([rows.support, rows.query], axis=1), axis=1)
    np.testing.assert_array_equal(everything, np.tile(np.arange(18), (5, 1)))


def test_a_restored_state_continues_the_stream() -> None:
    sampler = EpisodeSampler(30, 6, SHAPE, 5)
    sampler.indices(3)
    state = json.loads(json.dumps(sampler.state()))
    expected = sampler.indices(4)
    other = EpisodeSampler(30, 6, SHAPE, 0)
    other.restore(state)
    np.testing.assert_array_equal(other.indices(4).query, expected.query)
    assert (EpisodeSampler(30, 6, SHAPE, 6).indices(4).query != expected.query).any()
