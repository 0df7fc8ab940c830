"""Files that appear whole or not at all."""

import errno
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

PART = ".part"
"""What the names of files end in while they are written."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside another one; what is written there takes the other's place at the end.

    It is brought to the disk first, so that a kill, or a machine that stops,
    leaves the old file or the new one. An error leaves the old one, and nothing beside it.
    """
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}{PART}")
    try:
        yield aside
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(aside, path)
        sync_folder(path.parent)
    finally:
        with suppress(OSError):
            aside.unlink()


def sync_folder(folder: Path) -> None:
    """Bring a folder's names to the disk."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    except OSError as error:  # some network file systems cannot
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def save_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> None:
    """Write tensors and texts as safetensors, whole or not at all.

    Args:
        path: What the file is to be called; one that is there is replaced.
        tensors: By name; they may lie anywhere, but not share memory.
        header: Texts by name.

    Raises:
        OSError: The file cannot be written.
        SafetensorError: The same, or tensors that such a file cannot hold.
    """
    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    with replacing(path) as aside:
        save_file(plain, aside, metadata=dict(header))
