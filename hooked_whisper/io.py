"""Files that appear whole or not at all, a folder that one process has to itself, checksums.

Checksums are XXH3, 128 bits, in hexadecimal: they find every damage that happens by
chance, at the speed of memory. `xxhsum -H2` computes the same numbers.
"""

import errno
import fcntl
import glob
import json
import os
import shutil
import stat
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
import xxhash
from safetensors.torch import save_file
from torch import Tensor, nn

from hooked_whisper.errors import StoreBusyError, StoreWriteError, shown

PART = ".part"
"""What the names of files end in while they are written."""
LOCK_FILE = ".lock"
SAVE_EVERY_S = 30.0
SAVE_EVERY_WRITES = 30.0
"""Seconds between two writes of a file that grows, and how many writes would fit between them."""

_held: set[Path] = set()
"""Locks that this process has: its own would not stop it."""
_PIECE_BYTES = 2**22


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside another one; what is written there takes the other's place at the end.

    It is brought to the disk first, so that a kill, or a machine that stops,
    leaves the old file or the new one. An error leaves the old one, and nothing beside it.
    Who may read it is what the user's other new files say; safetensors' own are for the user alone.
    """
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}{PART}")
    try:
        aside.touch()
        mode = aside.stat().st_mode
        yield aside
        aside.chmod(mode)
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
        write_tensors(plain, aside, header)


def write_tensors(
    tensors: dict[str, Tensor], aside: Path, header: Mapping[str, str] | None = None
) -> None:
    """Write safetensors into what `replacing` gives.

    safetensors writes aside too, under a name that says nothing (`.tmpXXXX`): in a folder with
    a part's name, so that one knows what a kill left.
    """
    with tempfile.TemporaryDirectory(prefix=aside.name, dir=aside.parent) as inside:
        save_file(tensors, f"{inside}/tensors{PART}", None if header is None else dict(header))
        os.replace(f"{inside}/tensors{PART}", aside)


def write_whole(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file aside, bring it to the disk, and give it its name in one step.

    Args:
        path: What the file is to be called; one that is there is replaced.
        write: Writes the content to an open file.

    Raises:
        StoreWriteError: The disk is full, or forbids it. Nothing is left behind.
    """
    try:
        with replacing(path) as aside, aside.open("wb") as file:
            write(file)
    except OSError as error:
        raise _explain(error, path) from error


def write_json(path: Path, value: Any, then: Callable[[], object] | None = None) -> None:
    """Write a value as JSON, the same bytes for the same value, as `write_whole` does.

    Args:
        path: What the file is to be called.
        value: What is in it.
        then: Called when all is written, before the file has its name.
    """
    text = json.dumps(value, indent=1, ensure_ascii=False) + "\n"

    def write(file: IO[bytes]) -> None:
        # Half of a surrogate pair, as in names of files that are no UTF-8, becomes JSON's own
        # escape.
        file.write(text.encode("utf-8", "backslashreplace"))
        if then is not None:
            file.flush()
            then()

    write_whole(path, write)


@contextmanager
def lock_folder(folder: Path, work: str = "harvest") -> Iterator[None]:
    """Have a folder to oneself; the operating system ends it with the process, however that ends.

    Args:
        folder: It is there already.
        work: What writes into it, for the message: `"harvest"`, `"training"`.

    Source: POSIX record locks, which forked workers do not inherit and NFS knows.

    Raises:
        StoreBusyError: Another process, or other work of this one, has it.
        StoreWriteError: No file can be made there.
    """
    with _locked(folder / LOCK_FILE, f"another {work} writes into {folder} at this moment."):
        yield


@contextmanager
def lock_file(path: Path, work: str) -> Iterator[None]:
    """Have a file to oneself, by a lock beside it; as `lock_folder`. Parts of it are removed."""
    with _locked(_lock_of(path), f"another {work} writes {path} at this moment."):
        remove_parts(path.parent, path.name)
        yield


def _lock_of(path: Path) -> Path:
    return path.with_name(f".{path.name}{LOCK_FILE}")


def remove_file_and_lock(path: Path) -> None:
    """Remove a file that nobody writes any more, and the lock beside it."""
    for each in (path, _lock_of(path)):
        each.unlink(missing_ok=True)


@contextmanager
def growing_file(path: Path, work: str, save: Callable[[], object]) -> Iterator[Callable[[], None]]:
    """Have a file to oneself that is written now and then.

    Args:
        path: The file.
        work: What writes it, for the message: `"sweep"`.
        save: Writes it.

    Yields:
        What to call after each step: it saves when it is time.

    Raises:
        StoreBusyError: Another process has it.
    """
    with lock_file(path, work):
        saved_at, took_s = time.monotonic(), 0.0

        def step() -> None:
            nonlocal saved_at, took_s
            now = time.monotonic()
            if now - saved_at >= max(SAVE_EVERY_S, SAVE_EVERY_WRITES * took_s):
                save()
                saved_at = time.monotonic()
                took_s = saved_at - now

        yield step


@contextmanager
def _locked(lock: Path, busy: str) -> Iterator[None]:
    busy += " Wait until it is done, or name another place."
    path = lock.resolve()
    if path in _held:
        raise StoreBusyError(busy)
    try:
        file = lock.open("ab")
    except OSError as error:
        raise _explain(error, lock.parent) from error
    with file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise StoreBusyError(busy) from error
            raise _explain(error, lock.parent) from error
        _held.add(path)
        try:
            yield
        finally:
            _held.discard(path)


def make_folder(folder: Path) -> None:
    """Make a folder where it is missing.

    Raises:
        StoreWriteError: A file has the name, or the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _explain(error, folder) from error


def as_path(path: Any, error: type[Exception]) -> Path:
    """A path that a file system can have, with `~` replaced.

    Args:
        path: Whatever was given for one.
        error: What to raise where it is none: no text, a null byte, a user that is not there,
            a name that is too long.
    """
    try:
        found = Path(path).expanduser()
        os.stat(found)
    except (TypeError, ValueError, RuntimeError) as wrong:
        raise error(f"{shown(path)} is no path ({str(wrong)[:200]}). Give another.") from wrong
    except OSError as wrong:
        if wrong.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            raise error(f"{shown(path)} is no path: {wrong.strerror}. Give another.") from wrong
    return found


def remove_parts(folder: Path, name: str | None = None) -> None:
    """Remove what was not finished when it was killed: of one file, or of all of a folder.

    Only with the lock held: others' parts may be on their way.
    """
    pattern = f".*{PART}*" if name is None else f".{glob.escape(name)}.*{PART}*"
    for part in folder.glob(pattern):
        with suppress(OSError):  # what cannot be removed does no harm
            shutil.rmtree(part) if part.is_dir() else part.unlink()


def _explain(error: OSError, path: Path) -> StoreWriteError:
    remedy = "Name another place."
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        remedy = "Free some space and do the same again: what is on the disk already is whole."
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        remedy = "Name a folder that you may write to."
    return StoreWriteError(f"{path} cannot be written: {error.strerror or error}. {remedy}")


def read_json(path: Path, kind: Any, error: type[Exception], remedy: str) -> Any:
    """A JSON file of a declared shape.

    Args:
        path: The file.
        kind: What it holds, as types: TypedDicts, lists, numbers with bounds.
        error: What to raise where it cannot be read, or holds something else.
        remedy: What to do then, a sentence of that error.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as wrong:
        raise error(f"{path} cannot be read ({wrong}). {remedy}") from wrong
    return parse_json(text, kind, error, str(path), remedy)


def parse_json(
    text: str | bytes, kind: Any, error: type[Exception], where: str, remedy: str
) -> Any:
    """JSON text of a declared shape, as `read_json`; `where` it is from begins the message."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as wrong:
        raise _unfit(error, where, wrong, remedy) from wrong
    return check_json(value, kind, error, where, remedy)


def check_json(value: Any, kind: Any, error: type[Exception], where: str, remedy: str) -> Any:
    """A value of JSON of a declared shape, as `parse_json`."""
    import msgspec  # which `import hooked_whisper` does not need

    try:
        return msgspec.convert(value, kind)
    except (msgspec.MsgspecError, ValueError, RecursionError) as wrong:
        raise _unfit(error, where, wrong, remedy) from wrong


def _unfit(error: type[Exception], where: str, wrong: Exception, remedy: str) -> Exception:
    reason = str(wrong) or type(wrong).__name__
    return error(f"{where} does not hold what it should ({reason[:300]}). {remedy}")


def checksum_of_file(path: str | Path) -> str:
    """Of a file's bytes.

    Raises:
        OSError: It cannot be read, or is a pipe or a device, which might have no end.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(f"{str(path)!r} is no regular file")
    state = xxhash.xxh3_128()
    with open(path, "rb") as file:
        while piece := file.read(_PIECE_BYTES):
            state.update(piece)
    return state.hexdigest()


def checksum_of_json(value: Any) -> str:
    """Of a value that JSON can hold, whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return xxhash.xxh3_128_hexdigest(text.encode())


def checksum_of_audio(audio: Any) -> str:
    """Of a recording: a file's bytes, wherever they are, or samples with their rate.

    Raises:
        OSError: The file cannot be read.
    """
    if isinstance(audio, str | Path):
        return checksum_of_file(audio)
    if isinstance(audio, bytes):
        return xxhash.xxh3_128_hexdigest(audio)
    if hasattr(audio, "n_frames"):  # a Mel of one recording
        audio = (audio.values, int(audio.n_frames[0]))
    samples, rate_hz = audio
    values = samples.numpy(force=True) if isinstance(samples, Tensor) else np.asarray(samples)
    state = xxhash.xxh3_128(f"{values.dtype} {values.shape} {rate_hz}".encode())
    state.update(np.ascontiguousarray(values).data)
    return state.hexdigest()


def checksum_of_model(model: nn.Module) -> str:
    """Of every parameter and buffer: name, dtype, shape and bytes."""
    return checksum_of_tensors(model.state_dict())


def checksum_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Of tensors by name: name, dtype, shape and bytes of each."""
    state = xxhash.xxh3_128()
    for name, value in sorted(tensors.items()):
        state.update(f"{name} {value.dtype} {tuple(value.shape)};".encode())
        state.update(bytes_of(value.detach().cpu().contiguous()))
    return state.hexdigest()


def bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU, without a copy."""
    # A single value counts as contiguous whatever its stride is.
    return tensor.as_strided((tensor.numel(),), (1,)).view(torch.uint8).numpy().data
