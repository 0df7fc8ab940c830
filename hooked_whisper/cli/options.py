"""What commands share: their options, what these stand for, and how results are printed."""

import json
import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeVar

import click

from hooked_whisper.cli.main import Command
from hooked_whisper.display import json_value, progress_bar
from hooked_whisper.errors import InputError, RecordingsError

if TYPE_CHECKING:
    from hooked_whisper.model.whisper import HookedWhisper

RESIDUAL_STREAM = "*.hook_resid_post"
ENCODER_STREAM = "encoder.blocks.*.hook_resid_post"

_Item = TypeVar("_Item")

FILE = click.Path(path_type=Path)
DTYPE = click.Choice(["fp32", "fp16", "bf16"])
COUNT = click.IntRange(0)
COUNT_FROM_1 = click.IntRange(1)
FROM_0 = click.FloatRange(0)
OVER_0 = click.FloatRange(0, min_open=True)


def option(*names: str, **settings: Any) -> click.Option:
    """An option of a command, as `click.option` has it."""
    return click.Option(names, **settings)


def flag(*names: str, **settings: Any) -> click.Option:
    """An option that is there or not."""
    return click.Option(names, is_flag=True, **settings)


def file_argument(name: str, **settings: Any) -> click.Argument:
    """A path, by its place in the command line."""
    return click.Argument([name], type=FILE, **settings)


MODEL = (
    option(
        "--model",
        "source",
        default="digits",
        help="digits, a release such as tiny.en, a checkpoint, a folder or a hub id.",
    ),
    option("--device", help="Such as cuda:1.  [default: a GPU where there is one]"),
    option("--model-dtype", type=DTYPE, default="fp32", help="What the model runs in."),
)
"""Which weights, where, and in what."""

RECORDINGS = file_argument("recordings", nargs=-1, required=False)
"""Files, folders, CSV or JSONL manifests; none for those that come with the package."""

JSON = flag("--json", "as_json", help="Print one JSON document and nothing else.")
QUIET = flag("--quiet", help="No progress and no notes.")
OVERWRITE = flag("--overwrite", help="Replace what is there already.")
LANGUAGE = option(
    "--language",
    callback=lambda ctx, parameter, value: None if value == "auto" else value,
    help="Of what is said, as a code such as de; a manifest's column language goes first.  "
    "[default: what a multilingual model hears]",
)
HEADS = option(
    "--alignment-heads",
    help="Those that words are timed by: a JSON file of hooked-whisper heads, or a release whose "
    "they are.  [default: the model's own]",
)
TASK = option("--task", type=click.Choice(["transcribe", "translate"]), default="transcribe")
BATCH_SIZE = option("--batch-size", type=COUNT_FROM_1, default=8, help="Recordings side by side.")
SAE = option(
    "--sae",
    "sae_source",
    default="digits",
    help="An autoencoder's file or folder, a suite's folder, or digits for the shipped suite.",
)


def out_option(what: str, default: str) -> click.Option:
    """`--out`: where to write."""
    return option("--out", type=FILE, help=f"{what}  [default: {default}]")


def hooks_option(default: str | None) -> click.Option:
    """`--hook`, which may be repeated."""
    shown = f"  [default: {default}]" if default else ""
    return option("--hook", "hooks", multiple=True, help=f"A hook name or glob; repeat it.{shown}")


class Options(SimpleNamespace):
    """What a command line says, each option by its name; and what the shared ones stand for."""

    recordings: tuple[Path, ...]
    source: str
    device: str | None
    model_dtype: str
    alignment_heads: str | None = None
    out: Path | None
    overwrite: bool
    as_json: bool
    quiet: bool = False

    def besides(self, *names: str) -> dict[str, Any]:
        """The command's own options but some: those that the package takes as they are."""
        taken = {*Options.__annotations__, *names}
        return {name: value for name, value in vars(self).items() if name not in taken}

    def load_model(self, device: Any = None) -> "HookedWhisper":
        """The model of `MODEL`; on `device` where the command line names none."""
        from hooked_whisper.model.whisper import HookedWhisper
        from hooked_whisper.store.fingerprint import as_dtype

        named = click.get_current_context().get_parameter_source("source")
        if named is click.core.ParameterSource.DEFAULT:
            self.note(f"no --model named: taking {self.source}, which comes with the package.")
        dtype = as_dtype(self.model_dtype)
        return HookedWhisper.from_pretrained(
            self.source,
            device=self.device or device,
            dtype=dtype,
            alignment_heads=self.alignment_heads,
        )

    def chosen_recordings(self, *, say: bool = True) -> list[Any]:
        """What RECORDINGS names, as `harvest` takes it; else the shipped ones, and says so.

        Raises:
            RecordingsError: A path that leads nowhere.
        """
        if not self.recordings:
            from hooked_whisper import digits

            shipped = digits.recordings()
            if say:
                n = len(shipped)
                self.note(f"no recordings named: taking the {n} that come with the package.")
            return list(shipped)
        for path in self.recordings:
            if not path.expanduser().exists():
                raise RecordingsError(f"there is no file or folder {str(path)!r}.")
        return list(self.recordings)

    def listed_recordings(self) -> list[Any]:
        """Each recording by itself, of folders and manifests too."""
        from hooked_whisper.data.sources import as_recordings

        chosen = self.chosen_recordings()
        is_one_path = len(chosen) == 1 and isinstance(chosen[0], Path)
        return list(as_recordings(chosen[0] if is_one_path else chosen))

    def out_path(self, ending: str) -> Path:
        """`--out`, or a name made of the model's: `tiny-store` for tiny.pt and `store`."""
        return self.out or Path(f"{self._name}-{ending}")

    @property
    def _name(self) -> str:
        name = Path(self.source).name or "model"
        return name.removesuffix(".pt").removesuffix(".safetensors")

    def new_path(self, ending: str, *, goes_on: bool = False) -> Path:
        """The path of `out_path`, once it is sure that nothing is lost by writing there."""
        return new_path(self.out_path(ending), overwrite=self.overwrite or goes_on)

    def new_folder(self, ending: str, names: list[str]) -> Path:
        """The same for a folder with a file for each recording.

        Raises:
            InputError: Files of other recordings would stay beside the new ones.
        """
        folder = self.new_path(ending)
        alike = folder.glob(f"*{Path(names[0]).suffix}") if folder.is_dir() else ()
        if left := sorted({each.name for each in alike} - set(names)):
            raise InputError(
                f"{folder} holds {left[0]!r} of another run, which would stay beside the new "
                "files. Remove it, or name another --out."
            )
        return folder

    def begin_anew(self, folder: Path, *names: str) -> None:
        """Remove what an earlier run of the command left, unless this one goes on with it."""
        if not self.resume:
            for name in names:
                (folder / name).unlink(missing_ok=True)

    @contextmanager
    def kept_until_done(self, ending: str, about: Any) -> Iterator[Path | None]:
        """A file for unfinished work of this command line and nothing else; it goes at the end.

        Args:
            ending: What the work is called.
            about: What it is about beside the command line, as JSON has it.

        Yields:
            The path; None in a folder that may not be written.
        """
        from hooked_whisper.io import checksum_of_json, remove_file_and_lock

        mark = checksum_of_json([self.besides("quiet"), self.source, self.model_dtype, about])[:8]
        path = Path(f"{self._name}-{ending}-{mark}.safetensors").absolute()
        if not os.access(path.parent, os.W_OK):
            yield None
            return
        if path.exists():
            self.note(f"going on from {path.name}.")
        try:
            yield path
        except KeyboardInterrupt:
            self.note(f"what is done is in {path.name}: the same command does the rest.")
            raise
        remove_file_and_lock(path)

    def note(self, text: str) -> None:
        """A remark on standard error, unless the command is quiet."""
        if not self.quiet:
            note(text)

    @contextmanager
    def noting_warnings(self) -> Iterator[None]:
        """What the block warns of becomes remarks at its end."""
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            yield
        for warning in found:
            self.note(str(warning.message))

    def with_bar(self, items: Iterable[_Item], what: str) -> Iterator[_Item]:
        """Items with a progress bar on standard error."""
        yield from progress_bar(list(items), desc=what, unit="recording", show=not self.quiet)


def command(
    *own: click.Parameter,
    examples: str,
    out: tuple[str, str] | None = None,
    model: bool = True,
    quiet: bool = True,
) -> Callable[[Callable[[Options], None]], Command]:
    """Make a command of a function of `Options`, whose docstring is the help.

    Args:
        own: Its own arguments and options, in the order of the help; behind
            them come those that it shares with others, `--json` always.
        examples: Command lines, one a line.
        out: What `--out` names, and its default; `--overwrite` goes with it.
        model: Whether it has the options of `MODEL`.
        quiet: Whether it has `--quiet`.
    """
    shared = [*(MODEL if model else ()), *([out_option(*out), OVERWRITE] if out else ()), JSON]
    parameters = [*own, *shared, *([QUIET] if quiet else ())]

    def make(function: Callable[[Options], None]) -> Command:
        return Command(
            function.__name__,
            params=parameters,
            callback=lambda **values: function(Options(**values)),
            help=function.__doc__,
            examples=examples,
        )

    return make


def new_path(path: Path, *, overwrite: bool) -> Path:
    """A path to write to, once it is sure that nothing is lost by it.

    Raises:
        InputError: Something is there already, or its folder is not.
    """
    path = path.expanduser()
    is_there = any(path.iterdir()) if path.is_dir() else path.exists()
    if is_there and not overwrite:
        raise InputError(f"{path} exists. Name another --out, or pass --overwrite.")
    if not path.parent.is_dir():
        raise InputError(f"there is no folder {path.parent} to write {path.name} into.")
    return path


def file_names(recordings: list[Any], ending: str) -> list[str]:
    """What the file of each recording is called: like it, or like its whole path where that helps.

    Raises:
        InputError: Two would have one name.
    """
    names = [Path(recording.id).stem for recording in recordings]
    if len(set(names)) < len(names):
        paths = [Path(recording.id).with_suffix("") for recording in recordings]
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


def note(text: str) -> None:
    """A remark on standard error."""
    click.echo(text, err=True)


def echo_json(document: Any) -> None:
    """One JSON document; what is no finite number becomes null."""
    text = json.dumps(
        json_value(document), indent=1, ensure_ascii=False, allow_nan=False, default=_other_value
    )
    click.echo(text)


def echo_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """A table with a line of names above; the columns are those of the first row."""
    if not rows:
        return
    names = list(rows[0])
    lines = [names, *([_cell(row.get(name)) for name in names] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(names))]
    is_number = [
        all(isinstance(row.get(name), int | float) or row.get(name) is None for row in rows)
        for name in names
    ]
    for line in lines:
        cells = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, is_number, strict=True)
        ]
        click.echo("  ".join(cells).rstrip())


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return str(value)


def _other_value(value: Any) -> Any:
    """What JSON has not: paths, and numpy's and torch's numbers."""
    return str(value) if isinstance(value, Path) else json_value(value.tolist())
