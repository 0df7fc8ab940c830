"""Where the numbers of a training go while it runs: a CSV file, TensorBoard, Weights & Biases."""

import csv
import json
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from typing_extensions import TypedDict

from hooked_whisper.errors import HookedWhisperError, TrainingError
from hooked_whisper.io import as_path, read_json, replacing
from hooked_whisper.sae.training.config import TrainingConfig

LOG_FILE, WANDB_FILE = "log.csv", "wandb.json"
"""In the folder of a training: its log, and which run of Weights & Biases is its own."""

Line = dict[str, Any]
"""A line of a log: `"step"`, `"n_vectors"`, `"loss"` and so on; `"sae"` where several train."""

OnLog = Callable[[Line], object] | Sequence[Callable[[Line], object]] | None
"""What is told of each line: functions, and objects that are told more (`TrainingLog`)."""


class LoggedTraining(NamedTuple):
    """One autoencoder's training, as logs are told of it.

    Args:
        name: Its name; `""` where one autoencoder trains alone.
        cfg: How it is trained.
        step: Steps done: 0, or where it goes on.
        lines: Its log up to there; it grows.
    """

    name: str
    cfg: TrainingConfig
    step: int
    lines: Sequence[Line]

    @property
    def folder(self) -> Path | None:
        """Where the autoencoder is written."""
        return None if self.cfg.folder is None else as_path(self.cfg.folder, TrainingError)


class _Run(TypedDict):
    """Which run of Weights & Biases is a training's."""

    project: str
    id: str


class TrainingLog:
    """Something that follows trainings, given to `train_sae` as `on_log`; a base for your own.

    It is told when they begin, of each line, and when they end. After `begin`, an error in it
    loses this log, with a warning, and not the training.
    """

    def begin(self, trainings: Sequence[LoggedTraining]) -> None:
        """Get ready for the lines of some trainings, which may have come some way before.

        Lines of later steps than a training's `step` may have been told before it broke off.
        """

    def __call__(self, line: Line) -> None:
        """Take one line."""
        raise NotImplementedError

    def end(self, error: BaseException | None) -> None:
        """Finish: all is done, or training broke off."""


class CSVLog(TrainingLog):
    """A training's log as a CSV file in its folder, a row as soon as it is known.

    A column for each number, empty where a step had none. What was written after the
    checkpoint that a training goes on from, torn rows included, goes.
    """

    def __init__(self) -> None:
        self._trainings: dict[str, LoggedTraining] = {}
        self._columns: dict[str, list[str]] = {}  # of the files that are as they should be

    def begin(self, trainings: Sequence[LoggedTraining]) -> None:
        """Write the logs so far in place of what is there."""
        self._trainings = {each.name: each for each in trainings if each.folder is not None}
        for each in self._trainings.values():
            if each.lines:
                self._write(each)

    def __call__(self, line: Line) -> None:
        """Append a row; the whole file where that is not enough."""
        name = line.get("sae", "")
        if name not in self._trainings:
            return
        columns = self._columns.pop(name, None)
        if columns is None or not set(line) <= set(columns):
            self._write(self._trainings[name])
            return
        with self._path(self._trainings[name]).open("a", encoding="utf-8", newline="") as file:
            csv.DictWriter(file, columns, lineterminator="\n").writerow(line)
        self._columns[name] = columns

    def end(self, error: BaseException | None) -> None:
        """Write the files that a failure left unfinished."""
        for name, each in self._trainings.items():
            if name not in self._columns and each.lines:
                self._write(each)

    def _write(self, training: LoggedTraining) -> None:
        columns = list(dict.fromkeys(key for line in training.lines for key in line))
        path = self._path(training)
        with replacing(path) as part, part.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(training.lines)
        self._columns[training.name] = columns

    @staticmethod
    def _path(training: LoggedTraining) -> Path:
        assert training.folder is not None
        return training.folder / LOG_FILE


class TensorBoardLog(TrainingLog):
    """Follows trainings in TensorBoard: `tensorboard --logdir FOLDER`.

    Several autoencoders are runs beside each other, named as they are. Where a training goes
    on, what came after its checkpoint is shown once.

    Args:
        folder: For the event files; made if it does not exist.

    Raises:
        TrainingError: TensorBoard is not installed.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = as_path(folder, TrainingError)
        self._writers: dict[str, Any] = {}
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise _missing("TensorBoard", "tensorboard", error) from error
        self._make = SummaryWriter

    def begin(self, trainings: Sequence[LoggedTraining]) -> None:
        """Open an event file for each, and note how it is trained."""
        for each in trainings:
            # Names may be paths; a run stays in the folder.
            parts = [part for part in Path(each.name).parts if part not in ("/", "..")]
            writer = self._make(str(self.folder.joinpath(*parts)), purge_step=each.step + 1)
            self._writers[each.name] = writer
            text = json.dumps(each.cfg.to_dict(), indent=2)
            writer.add_text("config", f"```\n{text}\n```", each.step)
            writer.flush()

    def __call__(self, line: Line) -> None:
        """Write each number at its step; a kill loses none."""
        writer = self._writers[line.get("sae", "")]
        for name, value in _numbers(line).items():
            writer.add_scalar(f"training/{name}", value, line["step"])  # one section of the page
        writer.flush()

    def end(self, error: BaseException | None) -> None:
        """Close the event files."""
        for writer in self._writers.values():
            writer.close()
        self._writers = {}


class WandbLog(TrainingLog):
    """Follows trainings in Weights & Biases, each autoencoder as a run of its own.

    A run's config is that of the training. Where a training with a folder goes on, so does
    its run, whose id is kept there. `mode="offline"`, or WANDB_MODE=offline, writes to disk,
    for `wandb sync`.

    Args:
        project: The project.
        **init: What else `wandb.init` takes: `entity`, `group`, `tags`, `mode`, `dir`, ...
            Of several autoencoders, each one's name is added to `name`.

    Raises:
        TrainingError: wandb is not installed, or an argument that is chosen here.
    """

    def __init__(self, project: str, **init: Any) -> None:
        chosen = sorted({"id", "resume", "reinit", "config"} & set(init))
        if chosen:
            raise TrainingError(
                f"WandbLog takes no {' or '.join(chosen)}: a run has the training's config, and "
                "goes on where the training does."
            )
        self.project, self.init = project, init
        self._runs: dict[str, Any] = {}
        try:
            from wandb import init as make  # an empty folder wandb/ would be a package too
        except ImportError as error:
            raise _missing("Weights & Biases", "wandb", error) from error
        self._make = make

    def begin(self, trainings: Sequence[LoggedTraining]) -> None:
        """Begin a run for each, or go on with it."""
        for each in trainings:
            options = {**self.init, "config": each.cfg.to_dict()}
            if each.name:
                options["name"] = "/".join(filter(None, (self.init.get("name"), each.name)))
            file = None if each.folder is None else each.folder / WANDB_FILE
            if each.step and file is not None and file.exists():
                remedy = "Remove it: a new run begins."
                kept = read_json(file, _Run, TrainingError, remedy)
                if kept["project"] == self.project:
                    options |= {"id": kept["id"], "resume": "allow"}
            run = self._make(project=self.project, reinit="create_new", **options)
            self._runs[each.name] = run
            if file is not None:
                with replacing(file) as part:
                    part.write_text(json.dumps({"project": self.project, "id": run.id}))

    def __call__(self, line: Line) -> None:
        """Log each number at its step; a run that goes on has some already."""
        run = self._runs[line.get("sae", "")]
        if line["step"] >= run.step:
            run.log(_numbers(line), step=line["step"], commit=True)

    def end(self, error: BaseException | None) -> None:
        """Finish the runs, as failed ones where training broke off."""
        runs, self._runs = self._runs, {}
        for run in runs.values():
            run.finish(exit_code=int(error is not None))


class Logs:
    """All that follows some trainings: what was given as `on_log`, and a CSV file.

    Errors of plain functions, in `functions`, are their user's own. A `TrainingLog` that
    fails is warned of and told no more.
    """

    def __init__(self, on_log: OnLog) -> None:
        given: Iterable[Any] = () if on_log is None else (on_log,)
        if isinstance(on_log, list | tuple):
            given = on_log
        for each in given:
            if not callable(each) or isinstance(each, type):
                raise TrainingError(
                    f"on_log is {each!r}; pass a function that takes a dict, "
                    "TensorBoardLog(folder), WandbLog(project), or a list of them."
                )
        logs = [each for each in given if isinstance(each, TrainingLog)]
        self.functions = [each for each in given if not isinstance(each, TrainingLog)]
        self._logs: list[TrainingLog] = [CSVLog(), *logs]
        self._lost: list[TrainingLog] = []

    def begin(self, trainings: Sequence[LoggedTraining]) -> None:
        """Tell of the trainings."""
        for log in self._logs:
            try:
                log.begin(trainings)
            except HookedWhisperError:
                raise
            except Exception as error:
                raise TrainingError(
                    f"{type(log).__name__} cannot begin: {str(error)[:400]}. Mend that, or train "
                    "without it."
                ) from error

    def write(self, line: Line) -> None:
        """Tell of a line, all but the functions."""
        for log in self._logs:
            try:
                if log not in self._lost:
                    log(line)
            except Exception as error:
                self._lose(log, f"failed at step {line['step']}", error)

    def end(self, error: BaseException | None) -> None:
        """Tell that it is over."""
        for log in self._logs:
            try:
                log.end(error)
            except Exception as own:
                self._lose(log, "could not finish", own)

    def _lose(self, log: TrainingLog, what: str, error: Exception) -> None:
        if log in self._lost:
            return
        self._lost.append(log)
        warnings.warn(
            f"{type(log).__name__} {what}; training does not need it, and goes on. "
            f"{type(error).__name__}: {error}",
            stacklevel=2,
        )


def _numbers(line: Line) -> dict[str, float | int]:
    """What there is to plot against the step."""
    numbers = {name: value for name, value in line.items() if value is not None}
    return {name: value for name, value in numbers.items() if name not in ("sae", "step")}


def _missing(what: str, extra: str, error: ImportError) -> TrainingError:
    return TrainingError(
        f"{what} cannot be imported ({error}). Install it: pip install 'hooked-whisper[{extra}]'"
    )
