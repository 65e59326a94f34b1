"""Omniglot (B. Lake et al. 2015): reader of the public layout, download, and a compact cache at 28 x 28.

The layout is `images_background` and `images_evaluation`, each a zip or a folder of
`<part>/<alphabet>/<character>/<number>_<drawer>.png`, 105 x 105 with dark ink. Images are shrunk by area to 28 x 28 and
stored with ink = 255 on paper = 0.
"""

from __future__ import annotations

import functools
import hashlib
import io
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from pybilevel.data.cache import DataError, atomic, cache_dir, download, sha256
from pybilevel.data.images import Bytes, ClassImages

PARTS = ("images_background", "images_evaluation")
ADDRESS = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python"
SIZE = 28
DRAWINGS = 20
CACHE_VERSION = 1
# SHA-256 over names and pixels (see `fingerprint`), hence independent of how a zip was packed.
FINGERPRINTS = {
    "images_background": "4afcba1e0bfc658b3d4b7e543a86c98c343f33e06010b1ffb7b0d3a4749ee70f",
    "images_evaluation": "1c3083d9b8acd8b44454890088bbc21694af77b105f1155a8caa71d7876e884f",
}
MEMBER = re.compile(r"([^/]+)/(character\d+)/(\d+_\d+)\.png$")

Say = Callable[[str], None]
T = TypeVar("T")


def load_omniglot(folder: Path, *, say: Say = print) -> ClassImages:
    """All characters found in a folder, read through the cache.

    Cost: about 10 s for the 32,460 images the first time, 0.3 s afterwards. Memory: 25 MB.
    Errors: DataError where the folder holds neither part, or a part is damaged.
    """
    found = [path for part in PARTS if (path := find_part(folder, part)) is not None]
    if not found:
        raise DataError(_missing(folder))
    if len(found) < len(PARTS):
        say(
            f"Only {found[0].name} is in {folder}: its characters alone are split into train, validation and test."
        )
    parts = [_cached(path, say) for path in found]
    names = tuple(name for part in parts for name in part.names)
    return ClassImages(np.concatenate([part.images for part in parts]), names, "Omniglot")


def fetch_omniglot(folder: Path | None = None, *, address: str = ADDRESS, say: Say = print) -> Path:
    """Download both zips into a folder (default: the cache), check their pixels, and return the folder.

    Errors: NoNetwork where the address cannot be reached; DataError where what came is not Omniglot.
    """
    folder = folder or cache_dir() / "omniglot"
    for part in PARTS:
        path = folder / f"{part}.zip"
        if path.exists():
            continue
        download(f"{address}/{part}.zip", path, progress=say)
        found = fingerprint(path)
        if found != FINGERPRINTS[part]:
            path.unlink()
            raise DataError(
                f"{address}/{part}.zip is not the published set: fingerprint {found[:16]}...; removed."
            )
    return folder


def find_part(folder: Path, part: str) -> Path | None:
    """The zip or folder of a part: in `folder`, or in its subfolder `python` (as in the public repository)."""
    for base in (folder, folder / "python", folder.parent if folder.name == part else folder):
        for candidate in (base / f"{part}.zip", base / part):
            if candidate.is_file() or (candidate.is_dir() and any(candidate.iterdir())):
                return candidate
    return None


def fingerprint(path: Path) -> str:
    """SHA-256 over the sorted names and the pixels of a part."""
    digest = hashlib.sha256()
    for alphabet, character, drawing, png in _members(path):
        digest.update(f"{alphabet}/{character}/{drawing}\n".encode())
        digest.update(np.packbits(_ink(png, path) > 0).tobytes())
    return digest.hexdigest()


def read_part(path: Path) -> ClassImages:
    """Decode and shrink one part, without the cache. Classes are ordered by alphabet and character."""
    classes: dict[str, list[Bytes]] = {}
    for alphabet, character, _, png in _members(path):
        classes.setdefault(f"{alphabet}/{character}", []).append(_shrink(_ink(png, path)))
    if not classes:
        raise DataError(f"{path} holds no images named alphabet/characterNN/NNNN_NN.png.")
    odd = [f"{name} ({len(drawings)})" for name, drawings in classes.items() if len(drawings) != DRAWINGS]
    if odd:
        raise DataError(
            f"{path}: {len(odd)} characters do not have {DRAWINGS} drawings, first {odd[0]}. Is the file complete? "
            "Unpack or download it again."
        )
    return ClassImages(
        np.stack([np.stack(drawings) for drawings in classes.values()]), tuple(classes), "Omniglot"
    )


def _cached(path: Path, say: Say) -> ClassImages:
    """A part from the cache, keyed by the checksum of its source; read and cached where absent or unreadable."""
    file = cache_dir() / f"{path.stem}-{SIZE}-v{CACHE_VERSION}-{_checksum(path)[:16]}.npz"
    if file.exists():
        try:
            with np.load(file, allow_pickle=False) as saved:
                return ClassImages(saved["images"], tuple(str(name) for name in saved["names"]), "Omniglot")
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            say(f"The cache {file.name} is damaged: reading {path.name} again.")
    say(f"Reading {path.name} (once; cached afterwards)")
    part = read_part(path)
    try:
        with atomic(file) as out:
            np.savez_compressed(out, images=part.images, names=np.array(part.names))
    except OSError as error:
        say(f"No cache written ({error}); set XDG_CACHE_HOME to a writable folder to spare this next time.")
    return part


def _checksum(path: Path) -> str:
    """SHA-256 of a zip's bytes, or of the names and bytes of a folder's images."""
    if path.is_file():
        return sha256(path)
    digest = hashlib.sha256()
    for alphabet, character, drawing, png in _members(path):
        digest.update(f"{alphabet}/{character}/{drawing}\n".encode())
        digest.update(png)
    return digest.hexdigest()


def _members(path: Path) -> Iterator[tuple[str, str, str, bytes]]:
    """(alphabet, character, drawing, PNG bytes) of a part, sorted by name."""
    if path.is_dir():
        yield from _matching(
            {file.relative_to(path).as_posix(): file for file in path.rglob("*.png")}, Path.read_bytes
        )
        return
    try:
        with zipfile.ZipFile(path) as archive:
            yield from _matching({name: name for name in archive.namelist()}, archive.read)
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(f"cannot read {path}: {error}. Download it again, or pass another --data.") from error


def _matching(files: dict[str, T], read: Callable[[T], bytes]) -> Iterator[tuple[str, str, str, bytes]]:
    """The files whose names have the shape of the layout, in sorted order."""
    for name in sorted(files):
        match = MEMBER.search(name)
        if match and not name.startswith("__MACOSX"):
            alphabet, character, drawing = match.groups()
            yield alphabet, character, drawing, read(files[name])


def _ink(png: bytes, path: Path) -> Bytes:
    """Decode a PNG into ink = 255 on paper = 0."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise DataError("reading PNG needs Pillow: pip install 'pybilevel[experiments]'.") from error
    try:
        with Image.open(io.BytesIO(png)) as image:
            return 255 - np.asarray(image.convert("L"))
    except (UnidentifiedImageError, OSError) as error:
        raise DataError(f"{path} holds a damaged image: {error}. Unpack or download it again.") from error


def _shrink(ink: Bytes) -> Bytes:
    """Resize to 28 x 28 by area: every pixel is the mean over the rectangle it covers."""
    rows, columns = (_coverage(side) for side in ink.shape)
    return np.asarray(np.rint(rows @ ink.astype(np.float32) @ columns.T), dtype=np.uint8)


@functools.cache
def _coverage(side: int) -> npt.NDArray[np.float32]:
    """Share [28, side] of each target pixel that each source pixel covers, in one dimension; rows sum to 1."""
    edges = np.arange(SIZE + 1) * (side / SIZE)
    source = np.arange(side)
    overlap = np.minimum(edges[1:, None], source + 1) - np.maximum(edges[:-1, None], source)
    return np.asarray(np.maximum(overlap, 0) * (SIZE / side), dtype=np.float32)


def _missing(folder: Path) -> str:
    if not folder.is_dir():
        return (
            f"--data {folder} is not a folder. Leave --data out for the embedded characters, or "
            "use --data omniglot."
        )
    return (
        f"no Omniglot in {folder}: expected images_background and images_evaluation, as zips or folders. "
        "Pass the folder that holds them, or --data omniglot to download them."
    )
