"""Training sparse autoencoders, one or several in one pass over the activations."""

import inspect
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

from torch import Tensor

from hooked_whisper.display import progress_bar
from hooked_whisper.errors import HookedWhisperError, TrainingError
from hooked_whisper.interrupts import uninterrupted
from hooked_whisper.io import as_path, lock_folder, remove_parts
from hooked_whisper.model.whisper import HookedWhisper
from hooked_whisper.sae.base import SAE
from hooked_whisper.sae.saving import explained_writing
from hooked_whisper.sae.training.config import TrainingConfig
from hooked_whisper.sae.training.distributed import agreed_ranks, concatenated, round_robin
from hooked_whisper.sae.training.held_out import HeldOut, held_out_vectors
from hooked_whisper.sae.training.logs import LoggedTraining, Logs, OnLog
from hooked_whisper.sae.training.sources import (
    ActivationSource,
    by_hook,
    check_batch,
    flat_heads,
    hooks_of,
    of_hooks,
)
from hooked_whisper.sae.training.trainer import Trainer


def train_sae(
    cfg: TrainingConfig,
    activations: Any,
    *,
    held_out: Any = None,
    resume: bool = False,
    progress: bool = True,
    on_log: OnLog = None,
) -> SAE:
    """Train a sparse autoencoder.

    With `cfg.folder`, that folder gets the autoencoder (SAELens's format), the log
    (`log.csv`) and a checkpoint, which is also written on Ctrl-C and on errors. The
    same config and data with `resume=True` then go on, and come to the same weights,
    bit for bit, as if nothing had been in between.

    Under torchrun, or where PyTorch has a process group, every rank calls this alike, and
    together they train what one process would, `batch_size` being that of all: to 1e-5
    in float32, whatever their number, also where it changes between a checkpoint and going
    on. An iterable then gives the part of its own rank; a source is shared. The first rank
    writes, shows the progress and calls `on_log`; all return the autoencoder. When torchrun
    starts the ranks again, they go on from the checkpoint.

    Args:
        cfg: What to train and how.
        activations: An iterable of batches `[n, d_in]` of any size (for transcoders pairs
            of what is read and what is written), or an `ActivationSource`, such as
            `ModelActivations(model, recordings)` or a store, which gives the activations of
            `cfg.sae.hook_name`, again and again where they are fewer than it asks for.
        held_out: Vectors `[n, d_in]` of other recordings (for transcoders a pair), on which each
            line of the log judges the autoencoder as it is in use: `held_out_fvu` and so on.
            None takes those that a source holds out, as `Epochs(store, held_out=0.1)` does.
        resume: Go on from the checkpoint in `cfg.folder`, which must be there; from the start
            if it has no checkpoint yet. A plain iterable has to give the same batches again;
            those that were used are passed over.
        progress: Whether to show a bar on stderr.
        on_log: Gets each line of the log, a dict: a function, whose errors end training,
            `TensorBoardLog(folder)`, `WandbLog(project)`, whose errors do not, or a list.

    Returns:
        The autoencoder, in eval mode, of activations as they are. Its metadata say how it
        was trained.

    Raises:
        SAEConfigError: No such autoencoder.
        TrainingError: Activations of another shape, NaN or infinity (nothing is learned from
            that batch), none at all, a loss that is not finite, a folder with another
            training, that is not there to go on from or cannot be written, or a checkpoint
            that is damaged.
        StoreBusyError: Another training writes into the folder at this moment.
    """
    if isinstance(activations, ActivationSource):
        seed = cfg.seed
        given = None if held_out is None else by_hook(cfg, held_out)
        return train_saes(
            {"": cfg},
            activations,
            seed=seed,
            held_out=given,
            resume=resume,
            progress=progress,
            on_log=on_log,
        )[""]
    judged = {} if held_out is None else {"": held_out_vectors(cfg.sae, held_out)}
    with ExitStack() as locks:
        data = "an iterable of batches"
        run = _Run({"": cfg}, data, judged, resume, progress, on_log, locks)
        return run(run.numbered(activations), lambda item, trainer: item)[""]


def train_saes(
    cfgs: Mapping[str, TrainingConfig],
    activations: Any,
    *,
    seed: int = 0,
    held_out: Mapping[str, Tensor] | None = None,
    resume: bool = False,
    progress: bool = True,
    on_log: OnLog = None,
) -> dict[str, SAE]:
    """Train several sparse autoencoders in one pass: of other hooks, widths, k, seeds.

    Each one learns as `train_sae` would have it do, on the same batches where the hooks are
    the same. It is saved when it is done, also where others still learn.

    Args:
        cfgs: By names of your own. `cfg.sae.hook_name` says what each one learns from.
        activations: An `ActivationSource`, or an iterable of dicts of batches by hook.
        seed: Of the order of the data.
        held_out: Vectors by hook, those of a transcoder's two hooks aligned; see `train_sae`.
        resume: This and the others are `train_sae`'s; `"sae"` in a line of the log is the name.
            One of the folders must be there; the others begin from the start.

    Returns:
        The autoencoders by the names in `cfgs`.

    Raises:
        TrainingError: As in `train_sae`; a config without a hook, or two with one folder.
    """
    _check_together(cfgs)
    hook_names = list(dict.fromkeys(name for cfg in cfgs.values() for name in hooks_of(cfg)))
    batch_size = max(cfg.batch_size for cfg in cfgs.values())
    is_source = isinstance(activations, ActivationSource)
    if held_out is None and hasattr(activations, "held_out"):
        held_out = activations.held_out(hook_names)
    judged = {
        name: held_out_vectors(cfg.sae, of_hooks(held_out, cfg))
        for name, cfg in cfgs.items()
        if held_out is not None and set(hooks_of(cfg)) <= set(held_out)
    }
    data: Any = "an iterable of dicts of batches"
    if is_source:
        data = {"hook_names": hook_names, "batch_size": batch_size, "seed": seed}
        data |= getattr(activations, "chosen", {})
    with ExitStack() as locks:
        run = _Run(cfgs, data, judged, resume, progress, on_log, locks)
        if not is_source:
            return run(run.numbered(activations), lambda item, trainer: of_hooks(item, trainer.cfg))
        return _run_source(run, activations, hook_names, batch_size, seed)


def _run_source(
    run: "_Run", activations: Any, hook_names: list[str], batch_size: int, seed: int
) -> dict[str, SAE]:
    """Train on what a source gives; several ranks share the reading where it can be shared."""
    ranks, takes = run.ranks, inspect.signature(activations.stream).parameters
    first = run.first_needed if "skip" in takes else 0
    options: dict[str, Any] = {"seed": seed, **({"skip": first} if first else {})}
    if "n_epochs" in takes:
        options["n_epochs"] = None
    shares_reading = ranks.n > 1 and {"skip", "turn"} <= set(takes)
    if shares_reading:
        options["turn"] = (ranks.rank, ranks.n)
    stream = activations.stream(hook_names, batch_size, **options)
    with closing(stream) if hasattr(stream, "close") else nullcontext():
        own = stream
        if not shares_reading:  # each rank makes all batches, and gives its turns
            own = islice(stream, (ranks.rank - first) % ranks.n, None, ranks.n)
        return run(
            round_robin(own, ranks, first),
            lambda item, trainer: of_hooks(flat_heads(item), trainer.cfg),
        )


class _Run:
    """Trainers side by side on the batches of one pass."""

    def __init__(
        self,
        cfgs: Mapping[str, TrainingConfig],
        data: Any,
        held_out: Mapping[str, HeldOut],
        resume: bool,
        progress: bool,
        on_log: OnLog,
        locks: ExitStack,
    ) -> None:
        self.ranks = agreed_ranks(cfgs)
        trainers = [
            Trainer(cfg, name, data, self.ranks, held_out.get(name)) for name, cfg in cfgs.items()
        ]
        self.ranks.run_on_first(lambda: _lock_folders(trainers, resume, locks))
        for trainer in trainers:
            trainer.prepare_folder(resume=resume)
        self.names = list(cfgs)
        self.logs = Logs(on_log)
        self._n_logged = {each.name: len(each.log) for each in trainers}
        self.unfinished = [each for each in trainers if not each.is_done]
        self.results: dict[str, SAE] = {
            each.name: each.save_result() for each in trainers if each.is_done
        }
        self.bar: Any = None
        self._watched_s = 0.0
        if progress and self.unfinished and self.ranks.is_first:
            self.bar = progress_bar(
                total=sum(each.cfg.total_vectors for each in trainers),
                initial=sum(each.n_vectors for each in trainers),
                unit="vector",
                unit_scale=True,
                dynamic_ncols=True,
            )

    @property
    def first_needed(self) -> int:
        """The number of the first batch of the data that is not used up."""
        return min((each.position.batch for each in self.unfinished), default=0)

    def numbered(self, activations: Any) -> Iterator[tuple[int, Any]]:
        """The batches of an iterable; of several ranks, put together."""
        return concatenated(_iterate(activations), self.ranks, self.first_needed)

    def __call__(
        self, items: Iterator[tuple[int, Any]], pick: Callable[[Any, Trainer], Any]
    ) -> dict[str, SAE]:
        error: BaseException | None = None
        try:
            if self.unfinished:
                self.ranks.run_on_first(self._begin_logs)
            while self.unfinished:
                number, item = next(items, (-1, None))
                if number < 0:
                    self._run_dry()
                    break
                for trainer in list(self.unfinished):
                    self._feed(trainer, number, pick(item, trainer))
        except BaseException as stopped:
            error = stopped
            with uninterrupted():
                for trainer in self.unfinished:
                    self._save_at_stop(trainer)
            raise
        finally:
            if self.bar is not None:
                self.bar.close()
            if self.ranks.is_first:
                self.logs.end(error)
        return {name: self.results[name] for name in self.names}

    def _save_at_stop(self, trainer: Trainer) -> None:
        """Keep what there is; what cannot be written must not hide why training stopped."""
        try:
            trainer.save()
        except HookedWhisperError as error:
            warnings.warn(str(error), stacklevel=3)
        self._write_log(trainer)

    def _feed(self, trainer: Trainer, number: int, item: Any) -> None:
        """Give a trainer its part of a batch of the data, and let it do the steps it can do."""
        if item is None or number < trainer.position.batch:
            return
        sae = trainer.cfg.sae
        of = f" of {sae.hook_name!r}" if sae.hook_name else ""
        x, target = check_batch(item, number, sae.d_in, sae.d_out, paired=trainer.has_target, of=of)
        trainer.batches.add(number, x, target)
        while trainer.can_step:
            self._step(trainer)
        if trainer.is_done:
            self._finish(trainer)

    def _step(self, trainer: Trainer) -> None:
        now_s = time.monotonic()
        watch = self.bar is not None and now_s - self._watched_s > 1
        n_before = trainer.n_vectors
        trainer.do_step(watch=watch)
        self._write_log(trainer)
        trainer.save_when_due()
        if self.bar is None:
            return
        self.bar.update(trainer.n_vectors - n_before)
        if watch:
            self._watched_s = now_s
            shown = ("loss", "fvu", "held_out_fvu", "l0", "never_active")
            numbers = {name: trainer.latest.get(name) for name in shown}
            self.bar.set_description(trainer.name)
            self.bar.set_postfix({name: f"{n:.3g}" for name, n in numbers.items() if n is not None})

    def _begin_logs(self) -> None:
        """Tell the logs what is trained."""
        self.logs.begin([LoggedTraining(t.name, t.cfg, t.step, t.log) for t in self.unfinished])

    def _write_log(self, trainer: Trainer) -> None:
        """Tell the logs each line once, also where Ctrl-C came in between."""
        if not self.ranks.is_first:
            return
        for line in trainer.log[self._n_logged[trainer.name] :]:
            with uninterrupted():
                self._n_logged[trainer.name] += 1
                self.logs.write(line)
            for function in self.logs.functions:
                function(line)

    def _finish(self, trainer: Trainer) -> None:
        """Keep what a trainer came to, and write it where it has a folder."""
        trainer.settle()
        sae = trainer.result()

        def write() -> None:
            trainer.save()
            if trainer.folder is not None:
                sae.save(trainer.folder)

        with uninterrupted():
            self.ranks.run_on_first(write)
        self.results[trainer.name] = sae
        self.unfinished.remove(trainer)

    def _run_dry(self) -> None:
        """Use what did not fill a batch, and end with what there is."""
        for trainer in list(self.unfinished):
            if trainer.batches.n_waiting:
                self._step(trainer)
            if trainer.step:
                self._finish(trainer)
                total, n = trainer.cfg.total_vectors, trainer.n_vectors
                if self.ranks.is_first and n < total:
                    of = f" of {trainer.name!r}" if trainer.name else ""
                    warnings.warn(
                        f"the activations ran dry: training{of} ended after {n:,} of {total:,} "
                        "vectors. The autoencoder is complete, but its learning rate had not come "
                        "down yet. Give more activations, or ask for fewer.",
                        stacklevel=4,
                    )
        if self.unfinished:
            name = self.unfinished[0].name
            raise TrainingError(
                f"there were no activations{f' for {name!r}' if name else ''}: the data ended "
                "before the first one. An iterator can be used once only; make a new one."
            )


def _check_together(cfgs: Mapping[str, TrainingConfig]) -> None:
    if not cfgs:
        raise TrainingError("no autoencoders were given; pass {name: TrainingConfig(...)}.")
    folders: dict[Path, str] = {}
    for name, cfg in cfgs.items():
        if cfg.folder is None:
            continue
        folder = as_path(cfg.folder, TrainingError).resolve()
        if folder in folders:
            raise TrainingError(
                f"{folders[folder]!r} and {name!r} have the same folder, {folder}; give each its "
                "own."
            )
        folders[folder] = name


def _lock_folders(trainers: list[Trainer], resume: bool, locks: ExitStack) -> None:
    """Make every folder, and have it to oneself until `locks` is closed."""
    folders = [each.folder for each in trainers if each.folder is not None]
    if resume and len(folders) < len(trainers):
        raise TrainingError("resume needs the folder of the training: cfg.folder.")
    # A kill may have come before all folders of a suite were made.
    if resume and not any(folder.is_dir() for folder in folders):
        raise TrainingError(f"there is no folder {folders[0]} to resume from.")
    for folder in folders:
        with explained_writing(folder, TrainingError, "Nothing was trained."):
            folder.mkdir(parents=True, exist_ok=True)
        locks.enter_context(lock_folder(folder, "training"))
        remove_parts(folder)


def _iterate(activations: Any) -> Iterator[Any]:
    """An iterator of batches, or an error that says what would give one."""
    if isinstance(activations, HookedWhisper):
        raise TrainingError(
            "a model alone gives no activations; pass ModelActivations(model, recordings)."
        )
    if isinstance(activations, Tensor):
        raise TrainingError(
            f"a tensor {tuple(activations.shape)} was given; pass an iterable of batches, or "
            "MemoryActivations({hook_name: tensor}), which shuffles it every epoch."
        )
    if not isinstance(activations, Iterable):
        raise TrainingError(
            f"{activations!r} gives no activations; pass an iterable of batches [n, d_in], "
            "ModelActivations(model, recordings), or a store."
        )
    return iter(activations)
