"""Which weights a source means, and where they are."""

import difflib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hooked_whisper.config import release_names
from hooked_whisper.errors import ArchitectureError, SourceError
from hooked_whisper.weights.files import read_json
from hooked_whisper.weights.hub import load_from_hub
from hooked_whisper.weights.huggingface import read_huggingface_folder
from hooked_whisper.weights.loaded import LoadedWeights
from hooked_whisper.weights.native import CONFIG_FILE, FORMAT, read_native_folder
from hooked_whisper.weights.openai import load_release, read_openai_file

DIGITS = "digits"
DIGITS_FOLDER = Path(__file__).parent / "digits"
"""The small model for spoken digits that ships with the package."""

_ALLOWED = (
    f"Allowed are {DIGITS!r}, a release of OpenAI ({', '.join(release_names())}), a path to an "
    "OpenAI .pt checkpoint, a folder that save_pretrained wrote (of this package or of "
    "transformers, with safetensors), and a hub id such as 'openai/whisper-tiny'."
)


@dataclass(frozen=True)
class Source:
    """Where weights come from: what kind of place, and its name or path."""

    kind: Literal["digits", "release", "file", "folder", "hub"]
    location: str


def load_weights(source: Any, *, download_root: Any = None) -> LoadedWeights:
    """The weights that a source means, with every tensor's name and shape checked.

    Most of them stay in their file until `assign_weights` puts them into a model.

    Args:
        source: `"digits"`, a release of OpenAI, a path, or a hub id; see `resolve`.
        download_root: Cache folder for what is downloaded; openai-whisper's
            or huggingface_hub's own by default.

    Raises:
        SourceError: The source leads to no weights.
        DownloadError: A download failed.
        CheckpointError: A file cannot be read as plain tensors.
        ArchitectureError: The weights are none of a Whisper.
        WeightNameError: Tensors are missing or unexpected.
        WeightShapeError: A tensor has another shape than the config gives.
    """
    found = resolve(source)
    if found.kind == "release":
        return load_release(found.location, download_root)
    if found.kind == "hub":
        return load_from_hub(found.location, cache_folder=download_root)
    if found.kind == "file":
        return read_openai_file(Path(found.location))
    return _read_folder(Path(found.location))


def resolve(source: Any) -> Source:
    """What kind of source a name or path is; looks at the disk, opens nothing.

    Names go before files: a folder called `tiny` is `./tiny`. An existing
    path goes before a hub id.

    Raises:
        SourceError: It is none; names what is allowed and near misses.

    >>> resolve("tiny.en")
    Source(kind='release', location='tiny.en')
    """
    if not isinstance(source, (str, os.PathLike)) or isinstance(os.fspath(source), bytes):
        raise SourceError(f"the source is {source!r}, a {type(source).__name__}. {_ALLOWED}")
    text = os.fspath(source)
    if source == DIGITS:
        return Source("digits", str(DIGITS_FOLDER))
    if isinstance(source, str) and source in release_names():
        return Source("release", source)
    try:
        path = Path(text).expanduser()
        is_file, is_folder = path.is_file() and bool(text), path.is_dir() and bool(text)
    except (ValueError, RuntimeError, OSError) as error:
        raise SourceError(f"{text!r} is no path ({error}). {_ALLOWED}") from error
    if is_file:
        _check_file(path)
        return Source("file", str(path))
    if is_folder:
        return Source("folder", str(path))
    if isinstance(source, str) and _is_hub_id(source):
        return Source("hub", source)
    raise SourceError(f"{text!r} leads to no weights{_hint(text)} {_ALLOWED}")


def _check_file(path: Path) -> None:
    """Refuse files that are only a part of a checkpoint, before they are opened as a whole one."""
    if path.suffix in (".safetensors", ".json"):
        raise SourceError(
            f"{path} is one file of a checkpoint. Give its folder {path.resolve().parent}, with "
            "config.json and safetensors in it."
        )


def _read_folder(folder: Path) -> LoadedWeights:
    if folder == DIGITS_FOLDER and not (folder / CONFIG_FILE).is_file():
        raise SourceError(
            f"the digits model is not in this installation ({folder}). Install the package again."
        )
    config = folder / CONFIG_FILE
    if not config.is_file():
        held = sorted(path.name for path in folder.iterdir())[:12]
        raise SourceError(f"{folder} has no {CONFIG_FILE}; it holds {held}. {_ALLOWED}")
    values = read_json(config)
    if values.get("format") == FORMAT:
        return read_native_folder(folder)
    if "model_type" not in values:
        raise ArchitectureError(
            f"{config} has neither 'model_type' (transformers) nor 'format': {FORMAT!r} (this "
            f"package); it has {sorted(values)[:12]}."
        )
    return read_huggingface_folder(folder)


def _is_hub_id(text: str) -> bool:
    """Two plain words with a slash between them, and no file's ending."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", text) is not None and Path(
        text
    ).suffix not in (".pt", ".pth", ".bin", ".safetensors", ".json")


def _hint(text: str) -> str:
    """What the user may have meant, as the rest of a sentence."""
    if os.sep in text or Path(text).suffix in (".pt", ".pth", ".bin", ".safetensors"):
        return ": there is no such file or folder."
    word = text.lower().removeprefix("whisper").strip(" -_")
    known = [DIGITS, *release_names()]
    near = [word] if word in known else difflib.get_close_matches(word, known, n=3)
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else "."
