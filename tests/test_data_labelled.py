"""IDX files, digits, and the noisy labels of hyper-cleaning."""

from __future__ import annotations

import gzip
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from pybilevel.data.cache import DataError
from pybilevel.data.digits import load_digits
from pybilevel.data.idx import load_mnist, read_idx
from pybilevel.data.labelled import noisy_data


def idx(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return header + array.astype(np.uint8).tobytes()


@pytest.fixture
def mnist(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, 400)
    images = rng.integers(0, 256, (400, 5, 4))
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
    (tmp_path / "t10k-labels.idx1-ubyte").write_bytes(idx(labels))
    return tmp_path


@pytest.mark.parametrize("shape", [(7,), (3, 4), (2, 3, 5), (0, 2, 2)])
def test_idx_round_trip(tmp_path: Path, shape: tuple[int, ...]) -> None:
    array = np.arange(math.prod(shape), dtype=np.uint8).reshape(shape)
    path = tmp_path / "x-ubyte"
    path.write_bytes(idx(array))
    np.testing.assert_array_equal(read_idx(path), array)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "not an IDX file"),
        (b"\x00\x00\x0d\x01" + bytes(4), "unsigned bytes"),
        (b"\x00\x00\x08\x01\x00\x00\x00\x05abc", r"holds 3 bytes but its header says \[5\]"),
    ],
)
def test_wrong_idx_files_are_clear_errors(tmp_path: Path, data: bytes, text: str) -> None:
    path = tmp_path / "x-ubyte"
    path.write_bytes(data)
    with pytest.raises(DataError, match=text):
        read_idx(path)


def test_a_truncated_gzip_is_a_clear_error(mnist: Path) -> None:
    path = mnist / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(DataError, match=r"cannot read .*Is the file complete"):
        load_mnist(mnist)


def test_a_folder_without_mnist_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected t10k-images-idx3-ubyte"):
        load_mnist(tmp_path)
    with pytest.raises(DataError, match="is not a folder"):
        noisy_data(str(tmp_path / "nowhere"), noise=0.5, seed=0)


def test_digits_fill_the_range() -> None:
    images, labels = load_digits()
    assert images.shape == (1797, 8, 8)
    assert images.dtype == np.uint8
    assert images.max() == 255
    assert set(labels.tolist()) == set(range(10))


def test_parts_are_disjoint_and_only_training_labels_are_noisy(mnist: Path) -> None:
    data = noisy_data(str(mnist), noise=0.5, seed=0)
    x = torch.cat([data.train_x, data.validation_x, data.test_x])
    assert x.shape == (400, 20)
    assert len(torch.unique(x, dim=0)) == 400
    assert (len(data.train_y), len(data.validation_y)) == (200, 100)
    wrong = int((~data.clean).sum())
    assert 70 <= wrong <= 100  # 100 were drawn anew, one in ten of them right by chance
    images, labels = load_mnist(mnist)
    truth = {row.tobytes(): int(label) for row, label in zip(images.reshape(400, -1), labels, strict=True)}
    for x, y, clean in ((data.train_x, data.train_y, data.clean), (data.test_x, data.test_y, None)):
        right = torch.tensor([truth[(255 * r).round().to(torch.uint8).numpy().tobytes()] for r in x]) == y
        assert torch.equal(right, clean if clean is not None else torch.ones_like(right))


def test_noise_is_seeded_and_checked(mnist: Path) -> None:
    a, b = (noisy_data(str(mnist), noise=0.3, seed=4) for _ in range(2))
    assert torch.equal(a.train_y, b.train_y)
    assert noisy_data(None, noise=0.0, seed=0).clean.all()
    with pytest.raises(ValueError, match=r"noise = 1\.5"):
        noisy_data(None, noise=1.5, seed=0)
