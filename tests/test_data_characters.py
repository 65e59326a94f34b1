"""Omniglot's reader, cache and download, and the embedded characters."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pybilevel.data import omniglot, sources
from pybilevel.data.cache import DataError, NoNetwork, atomic, cache_dir
from pybilevel.data.omniglot import PARTS, fetch_omniglot, fingerprint, load_omniglot
from pybilevel.data.procedural import embedded_characters

CHARACTERS = {"images_background": 3, "images_evaluation": 2}


@pytest.fixture(autouse=True)
def private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def png(character: int, drawing: int) -> bytes:
    """A 1-bit picture, 105 x 105, white but for one black bar whose place tells the character and the drawing."""
    paper = np.full((105, 105), 255, np.uint8)
    paper[15 * character : 15 * character + 15, : 30 + drawing] = 0
    out = io.BytesIO()
    Image.fromarray(paper).convert("1").save(out, "PNG")
    return out.getvalue()


def files(part: str) -> dict[str, bytes]:
    return {
        f"{part}/Greek/character{c + 1:02d}/{c:04d}_{d + 1:02d}.png": png(c, d)
        for c in range(CHARACTERS[part])
        for d in range(20)
    }


@pytest.fixture
def zips(tmp_path: Path) -> Path:
    folder = tmp_path / "zips"
    folder.mkdir()
    for part in PARTS:
        with zipfile.ZipFile(folder / f"{part}.zip", "w") as archive:
            for name, data in reversed(files(part).items()):
                archive.writestr(name, data)
            archive.writestr("__MACOSX/" + next(iter(files(part))), b"junk")
    return folder


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    for part in PARTS:
        for name, data in files(part).items():
            path = tmp_path / "folders" / "python" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    return tmp_path / "folders"


def test_zips_and_folders_read_the_same(zips: Path, folders: Path) -> None:
    a, b = (load_omniglot(folder, say=lambda text: None) for folder in (zips, folders))
    assert a.images.shape == (5, 20, 28, 28)
    assert (
        a.names
        == b.names
        == (*[f"Greek/character{c:02d}" for c in (1, 2, 3)], "Greek/character01", "Greek/character02")
    )
    np.testing.assert_array_equal(a.images, b.images)


def test_ink_is_one_and_shrunk_by_area(zips: Path) -> None:
    images = load_omniglot(zips, say=lambda text: None).images
    assert images[0, 0, :4, :8].min() == 255  # the bar: 15 rows = 4 pixels, 30 columns = 8
    assert images[0, 0, 4:].max() == images[0, 0, :, 8:].max() == 0
    area = images[1].astype(float).sum(axis=(1, 2)) / 255 * 3.75**2
    np.testing.assert_allclose(area, 15 * (30 + np.arange(20)), rtol=5e-3)


def test_the_second_reading_comes_from_the_cache(zips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    first = load_omniglot(zips, say=said.append)
    assert sum(text.startswith("Reading") for text in said) == 2
    monkeypatch.setattr(omniglot, "read_part", pytest.fail)
    np.testing.assert_array_equal(load_omniglot(zips, say=said.append).images, first.images)


def test_a_damaged_cache_is_read_again(zips: Path) -> None:
    first = load_omniglot(zips, say=lambda text: None)
    for file in cache_dir().glob("*.npz"):
        file.write_bytes(file.read_bytes()[:100])
    said: list[str] = []
    np.testing.assert_array_equal(load_omniglot(zips, say=said.append).images, first.images)
    assert any("is damaged" in text for text in said)


def test_a_changed_source_is_read_anew(folders: Path) -> None:
    load_omniglot(folders, say=lambda text: None)
    (folders / "python/images_background/Greek/character01/0000_01.png").write_bytes(png(5, 5))
    said: list[str] = []
    load_omniglot(folders, say=said.append)
    assert [text.split()[1] for text in said] == ["images_background"]


def test_one_part_alone_is_said(zips: Path) -> None:
    (zips / "images_evaluation.zip").unlink()
    said: list[str] = []
    assert load_omniglot(zips, say=said.append).classes == 3
    assert any("Only images_background" in text for text in said)


def test_wrong_folders_and_files_are_clear_errors(tmp_path: Path, zips: Path) -> None:
    with pytest.raises(DataError, match="is not a folder"):
        load_omniglot(tmp_path / "nowhere")
    with pytest.raises(DataError, match="expected images_background and images_evaluation"):
        load_omniglot(tmp_path)
    (zips / "images_background.zip").write_bytes(b"PK not a zip")
    with pytest.raises(DataError, match="cannot read"):
        load_omniglot(zips, say=lambda text: None)


def test_missing_drawings_and_broken_images_are_clear_errors(folders: Path) -> None:
    broken = folders / "python/images_background/Greek/character02/0001_07.png"
    broken.write_bytes(b"\x89PNG")
    with pytest.raises(DataError, match="damaged image"):
        load_omniglot(folders, say=lambda text: None)
    broken.unlink()
    with pytest.raises(DataError, match=r"do not have 20 drawings, first Greek/character02 \(19\)"):
        load_omniglot(folders, say=lambda text: None)


def test_download_checks_the_pixels(zips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = zips.as_uri()
    with pytest.raises(DataError, match="is not the published set"):
        fetch_omniglot(tmp_path / "got", address=address, say=lambda text: None)
    assert not (tmp_path / "got/images_background.zip").exists()
    monkeypatch.setattr(omniglot, "FINGERPRINTS", {part: fingerprint(zips / f"{part}.zip") for part in PARTS})
    folder = fetch_omniglot(tmp_path / "got", address=address, say=lambda text: None)
    assert load_omniglot(folder, say=lambda text: None).classes == 5


def test_fingerprint_does_not_depend_on_packing(zips: Path, folders: Path) -> None:
    assert fingerprint(zips / "images_background.zip") == fingerprint(folders / "python/images_background")


def test_without_network_the_embedded_characters_come_loudly(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(**_: object) -> Path:
        raise NoNetwork("cannot download (offline).")

    monkeypatch.setattr(sources, "fetch_omniglot", offline)
    said: list[str] = []
    images = sources.characters("omniglot", say=said.append)
    assert images.source == "embedded characters"
    assert any("EMBEDDED" in text and "NOT Omniglot" in text for text in said)


def test_a_download_that_cannot_be_made_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(NoNetwork, match="cannot download"):
        fetch_omniglot(tmp_path / "got", address=(tmp_path / "absent").as_uri(), say=lambda text: None)
    assert not list(tmp_path.glob("got/*"))


def test_atomic_leaves_the_old_file_on_failure(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError), atomic(path) as file:
        file.write(b"half")
        raise RuntimeError
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir() if file.is_file()] == ["file"]


def test_embedded_characters_are_deterministic_and_varied() -> None:
    make = lambda seed: embedded_characters(alphabets=3, characters=4, drawings=5, seed=seed).images  # noqa: E731
    images = make(0)
    assert images.shape == (12, 5, 28, 28)
    np.testing.assert_array_equal(images, make(0))
    assert (images != make(1)).any()
    flat = images.reshape(60, -1).astype(float)
    assert (flat.max(axis=1) > 150).all(), "every drawing has ink"
    centred = images.astype(float) - images.astype(float).mean(axis=(0, 1))
    within = centred.var(axis=1).sum()
    between = centred.mean(axis=1).var(axis=0).sum() * 12
    assert between > 0.5 * within, "drawings of a character resemble each other"
    assert len(np.unique(flat, axis=0)) == 60, "no two drawings are equal"
