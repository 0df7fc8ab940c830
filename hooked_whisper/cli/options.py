"""Options that commands share, and what they stand for."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from hooked_whisper.display import progress_bar
from hooked_whisper.errors import InputError, RecordingsError

if TYPE_CHECKING:
    from hooked_whisper.model.whisper import HookedWhisper

FILE = click.Path(path_type=Path)
DTYPES = click.Choice(["fp32", "fp16", "bf16"])
RESIDUAL_STREAM = "*.hook_resid_post"

_Function = TypeVar("_Function", bound=Callable[..., Any])
_Item = TypeVar("_Item")


def model_options(function: _Function) -> _Function:
    """`--model`, `--device`, `--model-dtype`: which weights, where, and in what."""
    for option in (
        click.option("--model-dtype", type=DTYPES, default="fp32", help="What the model runs in."),
        click.option("--device", help="Such as cuda:1.  [default: a GPU where there is one]"),
        click.option(
            "--model",
            "source",
            default="digits",
            help="digits, a release such as tiny.en, a checkpoint, a folder or a hub id.",
        ),
    ):
        function = option(function)
    return function


recordings_argument = click.argument("recordings", nargs=-1, type=FILE)
"""Files, folders, CSV or JSONL manifests; none for those that come with the package."""

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON document and nothing else."
)
quiet_option = click.option("--quiet", is_flag=True, help="No progress and no notes.")
overwrite_option = click.option("--overwrite", is_flag=True, help="Replace what is there already.")
language_option = click.option(
    "--language", default="en", help="Of what is said, as a code such as de."
)
found_language_option = click.option(
    "--language", default="en", help="Of what is said, as a code such as de; auto finds it out."
)
batch_option = click.option(
    "--batch-size", type=click.IntRange(1), default=8, help="Recordings side by side."
)


def out_option(what: str, default: str) -> Callable[[_Function], _Function]:
    """`--out`: where to write."""
    return click.option("--out", type=FILE, help=f"{what}  [default: {default}]")


def hooks_option(default: str | None) -> Callable[[_Function], _Function]:
    """`--hook`, which may be repeated."""
    return click.option(
        "--hook",
        "hooks",
        multiple=True,
        help="A hook name or glob; repeat it." + (f"  [default: {default}]" if default else ""),
    )


def load_model(source: str, device: Any, model_dtype: str) -> "HookedWhisper":
    """The model of `model_options`."""
    from hooked_whisper.model.whisper import HookedWhisper
    from hooked_whisper.store.fingerprint import as_dtype

    context = click.get_current_context()
    if context.get_parameter_source("source") is click.core.ParameterSource.DEFAULT:
        quiet = context.params.get("quiet", False)
        note(f"no --model named: taking {source}, which comes with the package.", quiet)
    return HookedWhisper.from_pretrained(source, device=device, dtype=as_dtype(model_dtype))


def chosen_recordings(paths: tuple[Path, ...], quiet: bool) -> list[Any]:
    """What `recordings_argument` names, as `harvest` takes it; else the shipped recordings.

    Raises:
        RecordingsError: A path that leads nowhere.
    """
    if not paths:
        from hooked_whisper import digits

        shipped = digits.recordings()
        note(f"no recordings named: taking the {len(shipped)} that come with the package.", quiet)
        return list(shipped)
    for path in paths:
        if not path.expanduser().exists():
            raise RecordingsError(f"there is no file or folder {str(path)!r}.")
    return list(paths)


def listed(recordings: list[Any]) -> list[Any]:
    """Each recording by itself, of folders and manifests too."""
    from hooked_whisper.data.recordings import as_recordings

    is_one_path = len(recordings) == 1 and isinstance(recordings[0], Path)
    return list(as_recordings(recordings[0] if is_one_path else recordings))


def file_names(recordings: list[Any], ending: str) -> list[str]:
    """What the file of each recording is called: like it, or like its whole path where that helps.

    Raises:
        InputError: Two would have one name.
    """
    names = [Path(each.id).stem for each in recordings]
    if len(set(names)) < len(names):
        paths = [Path(each.id).with_suffix("") for each in recordings]
        names = ["-".join(path.parts).lstrip("/-") for path in paths]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(
            f"two recordings would both be written to {twice}.{ending}. Name each of them once."
        )
    return [f"{name}.{ending}" for name in names]


def spaced(text: str) -> str:
    """A text with the space before it that Whisper writes; nothing stays nothing."""
    return f" {text.strip()}" if text.strip() else ""


def short_name(source: str) -> str:
    """What files of a model are called: `whisper-tiny` for openai/whisper-tiny."""
    name = Path(source).name or "model"
    return name.removesuffix(".pt").removesuffix(".safetensors")


def new_path(out: Path | None, default: str, *, overwrite: bool) -> Path:
    """Where to write, once it is sure that nothing is lost by it.

    Raises:
        InputError: Something is there already, or its folder is not.
    """
    path = (out or Path(default)).expanduser()
    is_there = any(path.iterdir()) if path.is_dir() else path.exists()
    if is_there and not overwrite:
        raise InputError(f"{path} exists. Name another --out, or pass --overwrite.")
    if not path.parent.is_dir():
        raise InputError(f"there is no folder {path.parent} to write {path.name} into.")
    return path


def note(text: str, quiet: bool) -> None:
    """A remark on standard error."""
    if not quiet:
        click.echo(text, err=True)


def with_bar(items: Iterable[_Item], what: str, quiet: bool) -> Iterator[_Item]:
    """Items with a progress bar on standard error."""
    yield from progress_bar(items, desc=what, unit="recording", show=not quiet)
