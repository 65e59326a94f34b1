"""The user's cache folder: checksums, atomic files, downloads."""

from __future__ import annotations

import contextlib
import hashlib
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

BLOCK = 1 << 20


class DataError(RuntimeError):
    """Data that are missing, unreadable or not what they claim to be; the text gives the remedy."""


class NoNetwork(DataError):
    """A download that could not be made."""


def cache_dir() -> Path:
    """`$XDG_CACHE_HOME/pybilevel`, by default `~/.cache/pybilevel`."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "pybilevel"


def sha256(path: Path) -> str:
    """SHA-256 of a file, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[BinaryIO]:
    """Open a binary file that appears under `path` complete, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def download(url: str, path: Path, *, timeout: float = 20.0, progress: Callable[[str], None] = print) -> None:
    """Fetch a URL into a file, atomically.

    Errors: NoNetwork where the address cannot be reached; nothing is left behind.
    """
    progress(f"Downloading {url}")
    try:
        with urllib.request.urlopen(url, timeout=timeout) as response, atomic(path) as file:
            while block := response.read(BLOCK):
                file.write(block)
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", error)
        raise NoNetwork(
            f"cannot download {url} ({reason}). Fetch it elsewhere and pass its folder as --data."
        ) from error
