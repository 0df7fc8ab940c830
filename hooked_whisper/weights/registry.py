"""Which weights a source means, and where they are."""

import difflib
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from hooked_whisper.config import release_names
from hooked_whisper.errors import ArchitectureError, DownloadError, SourceError, shown
from hooked_whisper.weights.adapters import (
    ADAPTER_CONFIG,
    ADAPTER_FILES,
    adapt,
    is_adapter,
    read_adapter_config,
    read_adapter_tensors,
)
from hooked_whisper.weights.alignment_heads import add_known_heads, as_heads
from hooked_whisper.weights.ctranslate2 import (
    CT2_FILE,
    CT2_KEY,
    VOCABULARY_FILES,
    ct2_kind,
    read_ct2_folder,
)
from hooked_whisper.weights.files import is_file, names_in, read_json
from hooked_whisper.weights.ggml import GGML_MAGIC, read_ggml_file
from hooked_whisper.weights.huggingface import (
    GENERATION_FILE,
    WEIGHT_FILES,
    config_from_huggingface,
    read_generation,
    read_huggingface_folder,
    read_weight_map,
    shards_of,
)
from hooked_whisper.weights.loaded import LoadedWeights
from hooked_whisper.weights.mlx import MLX_FILES, is_mlx, read_mlx_folder
from hooked_whisper.weights.native import CONFIG_FILE, FORMAT, WEIGHTS_FILE, read_native_folder
from hooked_whisper.weights.openai import load_release, read_openai_file
from hooked_whisper.weights.towers import is_tower, prefix_of
from hooked_whisper.weights.vocabulary import (
    NAMES,
    NATIVE,
    TOKENIZER_FILES,
    Told,
    as_it_says,
    own_vocabulary,
    told_by,
)

DIGITS = "digits"
DIGITS_FOLDER = Path(__file__).parent / "digits"
"""The small model for spoken digits that ships with the package."""

_ALLOWED = (
    f"Allowed are {DIGITS!r}, a release of OpenAI ({', '.join(release_names())}), a path to an "
    "OpenAI .pt checkpoint, a folder that save_pretrained wrote (of this package or of "
    "transformers, with safetensors), a folder of CTranslate2 or MLX, a GGML file of "
    "whisper.cpp, an adapter's folder of peft, and a hub id such as 'openai/whisper-tiny'."
)


@dataclass(frozen=True)
class Source:
    """Where weights come from: what kind of place, and its name or path."""

    kind: Literal["digits", "release", "file", "folder", "hub"]
    location: str


def load_weights(
    source: Any,
    download_root: Any = None,
    d_vocab: int | None = None,
    alignment_heads: Any = None,
    base: Any = None,
) -> LoadedWeights:
    """The weights that a source means, with every tensor's name and shape checked.

    Most of them stay in their file until `assign_weights` puts them into a model.

    Args:
        source: `"digits"`, a release of OpenAI, a path, or a hub id; see `resolve`.
        download_root: Cache folder for what is downloaded; openai-whisper's
            or huggingface_hub's own by default.
        d_vocab: How many tokens to keep, from the first; None keeps all, after a check that
            their number means the vocabulary that they are.
        alignment_heads: What `as_heads` takes, instead of what the source names; None also takes
            those of a release that the weights are.
        base: Of an adapter: a source too, instead of the one that its config names.

    Raises:
        SourceError: The source leads to no weights.
        DownloadError: A download failed.
        CheckpointError: A file cannot be read as plain tensors.
        ArchitectureError: The weights are none of a Whisper.
        WeightNameError: Tensors are missing or unexpected.
        WeightShapeError: A tensor has another shape than the config gives.
    """
    found = resolve(source)
    adapter = _adapter_folder(found, download_root)
    if adapter is not None:
        loaded = _read_adapted(adapter, base, download_root, d_vocab)
    elif base is not None:
        raise SourceError(
            f"base is {shown(base, 60)}, and {found.location} is no adapter, which alone has one. "
            "Leave base out."
        )
    else:
        loaded = _read(found, download_root, d_vocab)
    if alignment_heads is None:
        return add_known_heads(loaded, Path(found.location) if found.kind == "file" else None)
    loaded.alignment_heads = as_heads(alignment_heads, loaded.cfg)
    return loaded


def _read(found: Source, download_root: Any, d_vocab: int | None) -> LoadedWeights:
    if found.kind == "release":
        return as_it_says(load_release(found.location, download_root), None, d_vocab)
    if found.kind == "hub":
        return load_from_hub(found.location, cache_folder=download_root, d_vocab=d_vocab)
    if found.kind == "file":
        return _read_file(Path(found.location), d_vocab)
    return _read_folder(Path(found.location), d_vocab)


def _adapter_folder(found: Source, download_root: Any) -> Path | None:
    """Where an adapter of peft is, from the hub too; None where the source is something else."""
    if found.kind == "folder" and not is_file(Path(found.location) / CONFIG_FILE):
        return Path(found.location) if is_adapter(Path(found.location)) else None
    if found.kind != "hub":
        return None
    fetch = _Fetcher(found.location, download_root, None)
    if fetch(CONFIG_FILE) is not None or (config := fetch(ADAPTER_CONFIG)) is None:
        return None
    fetch.revision = config.parent.name
    next((path for name in ADAPTER_FILES if (path := fetch(name))), None)
    return config.parent


def _read_adapted(
    folder: Path, base: Any, download_root: Any, d_vocab: int | None
) -> LoadedWeights:
    """A base with an adapter over it, the adapter read first: it is small."""
    config = read_adapter_config(folder)
    stored = read_adapter_tensors(folder)
    if base is None and config.base is None:
        raise SourceError(
            f"{config.source} does not name its base. Say which it is: from_pretrained(..., base=)."
        )
    try:
        found = resolve(config.base if base is None else base)
    except SourceError as error:
        raise SourceError(
            f"the base of the adapter in {folder} is not there: {str(error)[:300]} Say where it "
            "is: from_pretrained(..., base=...)."
        ) from error
    if _adapter_folder(found, download_root) is not None:
        raise SourceError(
            f"the base {shown(found.location, 80)} of the adapter in {folder} is an adapter itself."
            " Merge that one first, or name a whole model as base=."
        )
    where = Path(found.location) if found.kind == "file" else None
    loaded = add_known_heads(_read(found, download_root, d_vocab), where)
    before = loaded.cfg.base_vocab
    adapt(loaded, config, stored, str(folder))
    if loaded.cfg.d_vocab > before and before in NAMES:
        told = Told(frozenset({before}), "the base")
        loaded = as_it_says(loaded, told, None, own_vocabulary(folder, loaded.cfg, told))
    return loaded


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
        raise SourceError(
            f"the source is {shown(source, 60)}, a {type(source).__name__}. {_ALLOWED}"
        )
    text = os.fspath(source)
    if source == DIGITS:
        return Source("digits", str(DIGITS_FOLDER))
    if isinstance(source, str) and source in release_names():
        return Source("release", source)
    try:
        path = Path(text).expanduser()
        is_regular, is_folder = path.is_file() and bool(text), path.is_dir() and bool(text)
        is_other = path.exists() and not is_regular and not is_folder and bool(text)
    except (ValueError, RuntimeError, OSError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise SourceError(f"{shown(text, 60)} is no path ({reason[:60]}). {_ALLOWED}") from error
    if is_other:
        raise SourceError(f"{shown(text)} is a pipe or a device. Give a regular file or a folder.")
    if is_regular:
        _check_file(path)
        return Source("file", str(path))
    if is_folder:
        return Source("folder", str(path))
    if isinstance(source, str) and _is_hub_id(source):
        return Source("hub", source)
    raise SourceError(f"{shown(text, 60)} leads to no weights{_hint(text)} {_ALLOWED}")


def _check_file(path: Path) -> None:
    """Refuse files that are only a part of a checkpoint, before they are opened as a whole one."""
    if path.suffix in (".safetensors", ".json") or ct2_kind(path) is not None:
        raise SourceError(
            f"{path} is one file of a checkpoint. Give its folder {path.resolve().parent}, with "
            "what lies beside it."
        )


def _read_file(path: Path, d_vocab: int | None) -> LoadedWeights:
    """A checkpoint in one file, by how it begins."""
    with path.open("rb") as file:
        magic = file.read(4)
    if magic == GGML_MAGIC:
        return read_ggml_file(path, d_vocab)
    if magic == b"GGUF":
        raise ArchitectureError(
            f"{path} is a GGUF file, in which there are no Whispers: those of whisper.cpp are GGML "
            "files, such as ggml-tiny.en.bin. Give one of these."
        )
    return read_openai_file(path, d_vocab=d_vocab)


def _read_folder(folder: Path, d_vocab: int | None) -> LoadedWeights:
    if folder == DIGITS_FOLDER and not is_file(folder / CONFIG_FILE):
        raise SourceError(
            f"the digits model is not in this installation ({folder}). Install the package again."
        )
    config = folder / CONFIG_FILE
    if (kind := ct2_kind(folder / CT2_FILE)) is not None:
        if kind != "WhisperSpec":
            raise ArchitectureError(
                f"{folder / CT2_FILE} is a CTranslate2 model of another kind, {shown(kind, 40)}; "
                "only those converted from a Whisper can be loaded."
            )
        return read_ct2_folder(folder, d_vocab)
    if not is_file(config):
        raise SourceError(
            f"{folder} has no {CONFIG_FILE}; {names_in(folder)}. Weights are in a "
            "folder that save_pretrained wrote, of this package or of transformers, with "
            "safetensors."
        )
    values = read_json(config)
    if values.get("format") == FORMAT:
        return as_it_says(read_native_folder(folder), NATIVE, d_vocab)
    if is_mlx(values):
        return read_mlx_folder(folder, values, d_vocab)
    if "model_type" not in values:
        raise ArchitectureError(
            f"{config} has neither 'model_type' (transformers) nor 'format': {FORMAT!r} (this "
            f"package); it has {shown(sorted(values)[:12])}."
        )
    return read_huggingface_folder(folder, d_vocab=d_vocab)


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


def load_from_hub(
    repo_id: str,
    *,
    cache_folder: Any = None,
    endpoint: str | None = None,
    d_vocab: int | None = None,
) -> LoadedWeights:
    """Weights of a repository on the Hugging Face hub; only the files that are needed are fetched.

    The config comes first, so that another model is refused before its
    weights are downloaded.

    Args:
        repo_id: Such as `"openai/whisper-tiny"`.
        cache_folder: Where files are kept; huggingface_hub's own cache by default.
        endpoint: The hub's address; `$HF_ENDPOINT` or the public hub by default.
        d_vocab: As in `load_weights`.
    """
    fetch = _Fetcher(repo_id, cache_folder, endpoint)
    config = fetch(CONFIG_FILE)
    if config is None:
        raise SourceError(f"{repo_id!r} on the hub has no {CONFIG_FILE}; it is no model.")
    fetch.revision = config.parent.name  # so that all files are of one commit
    values = read_json(config)
    native = values.get("format") == FORMAT
    names, beside = _needed(values, native, config.parent, repo_id, fetch)
    weights = next((path for name in names if (path := fetch(name)) is not None), None)
    if weights is None:
        raise SourceError(f"{repo_id!r} on the hub has none of {', '.join(names)}.")
    if weights.suffix == ".json":
        beside += shards_of(read_weight_map(weights), prefix_of(values))
    for name in beside:
        fetch(name)
    loaded = _read_folder(config.parent, d_vocab)
    if not native:
        loaded.cfg = replace(loaded.cfg, model_name=repo_id)
    return loaded


def _needed(
    values: dict[str, Any], native: bool, folder: Path, repo_id: str, fetch: "_Fetcher"
) -> tuple[tuple[str, ...], list[str]]:
    """Where weights of a config may be, and what else tells the vocabulary."""
    if native:
        return (WEIGHTS_FILE,), []
    if is_mlx(values):
        return MLX_FILES, []
    if CT2_KEY in values:
        return (CT2_FILE,), [VOCABULARY_FILES[0], VOCABULARY_FILES[1]]
    if is_tower(values):
        return WEIGHT_FILES, []
    config_from_huggingface(values, repo_id, f"{CONFIG_FILE} of {repo_id!r}")
    fetch(GENERATION_FILE)
    told = told_by(values, read_generation(folder))
    has_more = values["vocab_size"] not in NAMES  # than a release, which these files name
    beside = [*TOKENIZER_FILES[:3], "special_tokens_map.json"] if has_more else []
    beside = beside or ([] if told else list(TOKENIZER_FILES[:2]))  # the small ones
    words = ["vocab.json", "merges.txt"] if fetch("vocab.json") else ["tokenizer.json"]
    return WEIGHT_FILES, [*beside, *words]


class _Fetcher:
    """Fetches files of one repository, and turns every failure into a DownloadError."""

    def __init__(self, repo_id: str, cache_folder: Any, endpoint: str | None) -> None:
        self.repo_id = repo_id
        self.cache_folder = cache_folder
        self.endpoint = endpoint
        self.revision: str | None = None

    def __call__(self, file_name: str) -> Path | None:
        """The file in the cache; None where the repository has none of this name."""
        from huggingface_hub import errors, hf_hub_download

        try:
            path = hf_hub_download(
                self.repo_id,
                file_name,
                revision=self.revision,
                cache_dir=self.cache_folder,
                endpoint=self.endpoint,
            )
        except errors.LocalEntryNotFoundError as error:
            if self._is_known_to_be_absent(file_name):
                return None
            raise self._error(f"the hub cannot be reached ({error.__cause__ or error})") from error
        except errors.EntryNotFoundError:
            return None
        except errors.GatedRepoError as error:
            raise self._error("access must be granted to your account on its page") from error
        except errors.RepositoryNotFoundError as error:
            raise self._error("the hub has no such repository, or it is private") from error
        except Exception as error:  # its transport's own classes change from release to release
            first_line = next(iter(str(error).splitlines()), "")
            raise self._error(f"{type(error).__name__}: {first_line}") from error
        return Path(path)

    def _is_known_to_be_absent(self, file_name: str) -> bool:
        """Whether the cache has an earlier answer of the hub, that there is no such file."""
        from huggingface_hub import _CACHED_NO_EXIST, try_to_load_from_cache

        known = try_to_load_from_cache(
            self.repo_id, file_name, cache_dir=self.cache_folder, revision=self.revision
        )
        return known is _CACHED_NO_EXIST

    def _error(self, reason: str) -> DownloadError:
        return DownloadError(
            f"{self.repo_id!r} could not be downloaded from the Hugging Face hub: {reason}. "
            "Check the name; without a network, give from_pretrained a local folder with "
            "config.json and safetensors, or use 'digits', which ships with this package."
        )
