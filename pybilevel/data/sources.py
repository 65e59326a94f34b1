"""Where few-shot characters come from: a folder, a download, or the embedded default; never silently."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pybilevel.data.cache import NoNetwork
from pybilevel.data.images import ClassImages
from pybilevel.data.omniglot import fetch_omniglot, load_omniglot
from pybilevel.data.procedural import embedded_characters
from pybilevel.data.splits import Splits, split

DOWNLOAD = "omniglot"


def characters(data: str | None, *, say: Callable[[str], None] = print) -> ClassImages:
    """The characters that `data` names.

    None: the embedded ones. "omniglot", where no such folder exists: downloaded to the cache, or the embedded ones
    where there is no network. Else: a folder with Omniglot in its public layout. What is used is always said.
    Errors: DataError with the remedy.
    """
    if data is None:
        say("NOTE: no --data, so these are EMBEDDED procedurally drawn characters, not a real data set.")
        return _said(embedded_characters(), say)
    if data == DOWNLOAD and not Path(data).exists():
        try:
            return _said(load_omniglot(fetch_omniglot(say=say), say=say), say)
        except NoNetwork as error:
            say(f"NOTE: {error}")
            say(
                "NOTE: going on with the EMBEDDED procedurally drawn characters instead: results are NOT Omniglot's."
            )
            return _said(embedded_characters(), say)
    return _said(load_omniglot(Path(data).expanduser(), say=say), say)


def character_splits(data: str | None, *, say: Callable[[str], None] = print) -> Splits:
    """The characters that `data` names, split into disjoint classes; rotations are classes of train and validation."""
    return split(characters(data, say=say))


def _said(images: ClassImages, say: Callable[[str], None]) -> ClassImages:
    say(f"Data: {images.describe()}.")
    return images
