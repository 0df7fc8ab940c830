"""Whispers on the Hugging Face hub, through huggingface_hub and its cache."""

from pathlib import Path
from typing import Any

from hooked_whisper.errors import DownloadError, SourceError
from hooked_whisper.weights.files import read_json
from hooked_whisper.weights.huggingface import (
    GENERATION_FILE,
    INDEX_FILE,
    config_from_huggingface,
    read_huggingface_folder,
    read_weight_map,
)
from hooked_whisper.weights.loaded import LoadedWeights
from hooked_whisper.weights.native import CONFIG_FILE, FORMAT, WEIGHTS_FILE, read_native_folder


def load_from_hub(
    repo_id: str, *, cache_folder: Any = None, endpoint: str | None = None
) -> LoadedWeights:
    """Weights of a repository on the Hugging Face hub; only safetensors are fetched.

    The config comes first, so that another model is refused before its
    weights are downloaded.

    Args:
        repo_id: Such as `"openai/whisper-tiny"`.
        cache_folder: Where files are kept; huggingface_hub's own cache by default.
        endpoint: The hub's address; `$HF_ENDPOINT` or the public hub by default.

    Raises:
        DownloadError: No network, no such repository, or a broken-off file.
        SourceError: The repository holds no safetensors.
        ArchitectureError: The model is no Whisper.
    """
    fetch = _Fetcher(repo_id, cache_folder, endpoint)
    config = fetch(CONFIG_FILE)
    if config is None:
        raise SourceError(f"{repo_id!r} on the hub has no {CONFIG_FILE}; it is no model.")
    fetch.revision = config.parent.name  # so that all files are of one commit
    values = read_json(config)
    native = values.get("format") == FORMAT
    if not native:
        config_from_huggingface(values, repo_id, f"{CONFIG_FILE} of {repo_id!r}")
        fetch(GENERATION_FILE)
    if fetch(WEIGHTS_FILE) is None:
        index = fetch(INDEX_FILE)
        if index is None:
            raise SourceError(
                f"{repo_id!r} on the hub has neither {WEIGHTS_FILE} nor {INDEX_FILE}. Pickled "
                "weights are not read: use a revision or a conversion with safetensors."
            )
        for file_name in sorted(set(read_weight_map(index).values())):
            fetch(file_name)
    if native:
        return read_native_folder(config.parent)
    return read_huggingface_folder(config.parent, model_name=repo_id)


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
