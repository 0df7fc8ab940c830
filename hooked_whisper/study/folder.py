"""A study's folder: nobody else's while it runs; an earlier report stays until the new one is done.

The new one is made in a folder inside, and moved piece by piece, report.json last: it is what
says that there is something to move. A kill on the way leaves what the next call moves.
"""

import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from hooked_whisper.errors import ReportError
from hooked_whisper.io import LOCK_FILE, lock_folder, make_folder, remove_parts, sync_folder
from hooked_whisper.study.autoencoder import SAE_FOLDER, STORE
from hooked_whisper.study.report import PICTURES

REPORT, NUMBERS = "report.html", "report.json"
FEATURES, ATTENTION = "features.html", "attention.html"
UNFINISHED = ".unfinished"
"""Where a study is made while the folder has a report."""
_MADE_ANEW = (PICTURES, FEATURES, ATTENTION, REPORT, NUMBERS)
"""What every study makes itself, or has none of; an autoencoder may be an earlier one's."""
_PIECES = (STORE, SAE_FOLDER, *_MADE_ANEW)


@contextmanager
def study_folder(folder: Path, goes_on: Collection[str], *, overwrite: bool) -> Iterator[Path]:
    """Have a folder to oneself.

    Args:
        folder: Made where it is missing.
        goes_on: What of an interrupted run is used, and takes an earlier one's place.
        overwrite: Whether there may be a report.

    Yields:
        Where to write: what is there at the end of the block is the new report.
    """
    if folder.exists() and not folder.is_dir():
        raise ReportError(f"{folder} is a file; name a folder for the report.")
    if (folder / UNFINISHED / NUMBERS).exists():
        with lock_folder(folder, "study"):
            _take_place(folder)
    _has_report(folder, overwrite=overwrite)
    make_folder(folder)
    was_ours = (folder / LOCK_FILE).exists()
    with lock_folder(folder, "study"):
        for name in _PIECES:
            remove_parts(folder, name)
        if not _has_report(folder, overwrite=overwrite):
            if was_ours:  # what one left that broke off may be more than this one makes
                remove(*(folder / name for name in _MADE_ANEW))
            yield folder
            return
        inside = folder / UNFINISHED
        make_folder(inside)
        remove(*(path for path in inside.iterdir() if path.name not in goes_on))
        yield inside
        remove(*(folder / name for name in goes_on if not (inside / name).exists()))
        _take_place(folder)


def remove(*paths: Path) -> None:
    """Remove files and folders, as far as that can be."""
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _has_report(folder: Path, *, overwrite: bool) -> bool:
    """Whether there is a finished one, once that may be."""
    found = [name for name in (REPORT, NUMBERS) if (folder / name).exists()]
    if found == [REPORT] and (folder / LOCK_FILE).exists():
        return False  # of a study that was killed between the two: it goes on
    if found and not overwrite:
        raise ReportError(
            f"{folder} holds {found[0]} of another run. Name another folder, or pass "
            "overwrite=True (--overwrite) to replace it."
        )
    return bool(found)


def _take_place(folder: Path) -> None:
    """Move a finished study to where the earlier one is; what was broken off goes on.

    `earlier` says that a piece has been looked at: what is there is the new one's then.
    """
    inside = folder / UNFINISHED
    try:
        for name in _PIECES:
            new, there, earlier = inside / name, folder / name, inside / f"{name}.earlier"
            if not new.exists() and (name not in _MADE_ANEW or earlier.exists()):
                continue
            if there.is_dir() or (there.exists() and not new.exists()):
                os.replace(there, earlier)
            else:
                earlier.touch()
            if new.exists():
                os.replace(new, there)
        sync_folder(folder)
    except OSError as error:
        raise ReportError(
            f"the report in {folder / UNFINISHED} cannot be moved: {error}. Make {folder} writable "
            "and make the same call again."
        ) from error
    remove(inside)
