"""From recordings to a store of activations, shard by shard, with nothing lost on the way."""

import itertools
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hooked_whisper.data.hook_rows import RowHooks, choose_hooks
from hooked_whisper.data.loading import (
    Loaded,
    ReadingRules,
    ReadJob,
    TextRule,
    default_workers,
    load_all,
)
from hooked_whisper.data.recordings import Recordings
from hooked_whisper.data.sources import as_recordings
from hooked_whisper.data.windows import LongRule
from hooked_whisper.display import progress_bar
from hooked_whisper.distributed import ProcessGroup
from hooked_whisper.errors import RecordingsError, StoreError
from hooked_whisper.hooks.names import NamesFilter
from hooked_whisper.io import as_path, lock_folder, make_folder, remove_parts, write_json
from hooked_whisper.model.whisper import HookedWhisper
from hooked_whisper.speech.tokens import get_tokenizer
from hooked_whisper.store import manifest
from hooked_whisper.store.fingerprint import (
    HarvestOptions,
    as_dtype,
    check_choice,
    check_same,
    make_identity,
)
from hooked_whisper.store.manifest import damaged_shards
from hooked_whisper.store.reader import ActivationStore
from hooked_whisper.store.shard_writer import ShardWriter, WriterConfig
from hooked_whisper.store.shards import record_name, shard_name


def harvest(
    model: HookedWhisper,
    recordings: Any,
    hooks: NamesFilter,
    folder: str | Path,
    *,
    dtype: torch.dtype | str = "fp16",
    frames: str = "speech",
    text: TextRule = "label",
    language: str | None = None,
    task: str = "transcribe",
    long: LongRule = "split",
    batch_size: int = 16,
    recordings_per_shard: int | None = None,
    n_workers: int | None = None,
    strict: bool = False,
    verify: bool = False,
    note: str = "",
    text_column: str = "text",
    audio_column: str | None = None,
    progress: bool = False,
) -> ActivationStore:
    """Store a model's activations on recordings, in a folder that can be read at random.

    Run again after an interruption of any kind, the same call goes on where
    the last complete shard ends; the finished store is byte for byte the one
    of an uninterrupted run. Under torchrun, the ranks share the shards.

    Args:
        model: A HookedWhisper.
        recordings: Files, folders, manifests, a `datasets.Dataset`, a list of
            these, or any iterable; see `as_recordings`.
        hooks: Names or globs; see `model.hook_names`. The model runs no
            further than the last of them.
        folder: Where the store is; made where it is missing.
        dtype: What to store: `"fp32"`, `"fp16"` or `"bf16"`.
        frames: `"speech"`: rows of positions that hold sound; `"all"`: of the
            whole window. `"approximate"`: rows as of speech, in less time, of an encoder that
            sees the sound and 2 s of padding instead of the window that Whisper was trained on.
        text: Where the decoder's tokens come from, if its hooks are asked
            for: the recordings' `"label"`, or the model's own `"transcript"`.
        language: Of the tokens' beginning; a label `language` goes first. None has a
            multilingual model find out.
        task: Of the tokens' beginning.
        long: A recording longer than the window is `"split"` into windows,
            `"cut"` after the first, or counted as bad (`"skip"`).
        batch_size: Windows side by side in one pass.
        recordings_per_shard: None is as many as full windows fill 256 MiB with.
        n_workers: Processes that read audio; None is one for each processor
            but one, 8 at most; 0 reads in this process.
        strict: Stop at a recording that cannot be used instead of skipping it.
        verify: Check all checksums first, and make damaged shards again.
        note: Put into the manifest; needed when hooks on the model change it.
        text_column: Where rows of manifests and data sets keep what is said.
        audio_column: Where they keep their audio; None looks for the usual names.
        progress: Show a bar on stderr.

    Raises:
        HookNameError: A name that the model does not have.
        RecordingsError: No recordings; or a bad one, when strict.
        StoreMismatchError: The folder holds another harvest.
        StoreBusyError: Another process harvests into it.
        StoreWriteError: The disk is full, or forbids it.
        StoreError: Options that do not go together.
    """
    chosen = choose_hooks(model, hooks)
    check_choice("text", text, ("label", "transcript"))
    check_choice("long", long, ("split", "cut", "skip"))
    options = HarvestOptions(as_dtype(dtype), frames, batch_size, recordings_per_shard, note)
    source = as_recordings(recordings, text_column=text_column, audio_column=audio_column)
    rules = ReadingRules(model.cfg, long, text if chosen.needs_tokens else None, language, task)
    _check_model(model, note)
    if frames == "approximate":
        _check_without_padding(model, chosen)
    _check_texts(source, rules)
    plan = Plan(
        WriterConfig(model, chosen, rules, options, strict=strict),
        source,
        as_path(folder, StoreError),
        make_identity(model, chosen, source, rules, options),
        default_workers() if n_workers is None else n_workers,
    )
    _run(plan, ProcessGroup.current(StoreError), verify=verify, progress=progress)
    return ActivationStore(folder)


@dataclass(frozen=True)
class Plan:
    """All that a harvest is about to do."""

    config: WriterConfig
    recordings: Recordings
    folder: Path
    identity: dict[str, Any]
    n_workers: int

    def jobs(self, ranks: ProcessGroup, done: set[int], counted: list[int]) -> Iterator[ReadJob]:
        """This rank's recordings; how many there are in all is appended at the end."""
        size, n = self.identity["recordings_per_shard"], 0
        for recording in self.recordings:
            shard = n // size
            if shard % ranks.n == ranks.rank:
                yield ReadJob(n, shard, recording, check_only=shard in done)
            n += 1
        counted.append(n)


def _run(plan: Plan, ranks: ProcessGroup, *, verify: bool, progress: bool) -> None:
    with ExitStack() as stack:

        def begin() -> set[int]:
            make_folder(plan.folder)
            stack.enter_context(lock_folder(plan.folder))
            manifest.begin(plan.folder, plan.identity)
            remove_parts(plan.folder)
            return _complete_shards(plan.folder, verify=verify)

        done = ranks.run_on_first(begin)
        first, *others = ranks.gather_objects(plan.identity)
        for other in others:  # a rank with another model or list is a mistake
            check_same(first, other, plan.folder)
        counted: list[int] = []
        with _bar(plan, ranks, progress) as bar:
            _make_shards(plan, ranks, done, counted, bar)
        ranks.barrier()
        ranks.run_on_first(lambda: _finish(plan, counted[0]))


def _complete_shards(folder: Path, *, verify: bool) -> set[int]:
    numbers = {int(path.stem.split("-")[1]) for path in folder.glob("shard-*.json")}
    complete = {number for number in numbers if manifest.read_record(folder, number) is not None}
    return complete - set(damaged_shards(folder, complete)) if verify else complete


def _make_shards(
    plan: Plan, ranks: ProcessGroup, done: set[int], counted: list[int], bar: Any
) -> None:
    """Make what is missing; the shard before is written while the model runs on the next."""
    loaded = load_all(plan.jobs(ranks, done, counted), plan.config.rules, plan.n_workers)
    with ThreadPoolExecutor(max_workers=1) as thread:
        writing: Future[None] | None = None
        for number, group in itertools.groupby(loaded, lambda each: each.job.shard):
            if number in done:
                _check_shard(plan, number, _counting(group, bar))
                continue
            shard = ShardWriter(number, plan.config, plan.folder)
            for each in _counting(group, bar):
                shard.add(each)
            shard.finish()
            if writing is not None:
                writing.result()
            writing = thread.submit(_write, shard, plan.folder)
        if writing is not None:
            writing.result()


def _write(shard: ShardWriter, folder: Path) -> None:
    """The rows first, then the record that makes them count."""
    written = shard.rows.write(folder / shard_name(shard.number))
    write_json(folder / record_name(shard.number), shard.record(written))


def _check_shard(plan: Plan, number: int, group: Iterator[Loaded]) -> None:
    record = manifest.read_record(plan.folder, number)
    if record is None:
        raise StoreError(f"{plan.folder / shard_name(number)} was removed during the harvest.")
    manifest.check_recordings(record, list(group), plan.folder)
    if plan.config.strict and record["skipped"]:
        first = record["skipped"][0]
        raise RecordingsError(f"recording {first['index']}, {first['id']!r}: {first['reason']}")


def _finish(plan: Plan, n_recordings: int) -> None:
    if n_recordings == 0:
        raise RecordingsError("the stream of recordings is empty.")
    result = manifest.finish(plan.folder, plan.identity, n_recordings)
    if result["n_recordings"] == 0:
        first = result["skipped"][0]
        raise RecordingsError(
            f"none of the {n_recordings} recordings can be used; the first is {first['id']!r}: "
            f"{first['reason']}"
        )


def _check_model(model: Any, note: str) -> None:
    """Refuse a model whose hooks the manifest would not know of."""
    hooked = [name for name, point in model.hook_dict.items() if point.is_hooked]
    if hooked and not note:
        raise StoreError(
            f"{hooked[0]!r} has hooks or an SAE, and a manifest cannot tell what they do. Call "
            "model.reset_hooks() and reset_saes(), or say what they do: harvest(..., note=...)."
        )


def _check_without_padding(model: Any, hooks: RowHooks) -> None:
    """Refuse what an encoder that sees less than the window does not have, or not in one width."""
    for hook in hooks.each:
        axes = model.hook_dict[hook.name].axes
        if hook.name.startswith("decoder.") or {"query", "key"} <= set(axes):
            raise StoreError(
                f'frames is "approximate", and {hook.name!r} needs the whole window. Store hooks '
                'of the encoder other than its patterns, or take frames="speech".'
            )


def _check_texts(recordings: Recordings, rules: ReadingRules) -> None:
    """Refuse at once what would fail on every single recording."""
    if rules.text is None:
        return
    listed = recordings.is_in_memory
    if rules.text == "transcript" or not listed or any(each.tokens is None for each in recordings):
        get_tokenizer(rules.cfg, rules.language, rules.task)
    if rules.text == "label" and listed:
        if all(each.text is None and each.tokens is None for each in recordings):
            raise RecordingsError(
                "the decoder's hooks need tokens, and no recording has a text. Give a manifest "
                'with a column text, or harvest(..., text="transcript").'
            )


@contextmanager
def _bar(plan: Plan, ranks: ProcessGroup, progress: bool) -> Iterator[Any]:
    """A progress bar of this rank's recordings, shown by the first rank."""
    if not progress or not ranks.is_first:
        with nullcontext() as nothing:
            yield nothing
        return
    n = plan.recordings.n
    total = None if n is None else -(-n // ranks.n)
    with progress_bar(total=total, desc="harvesting", unit="recording") as bar:
        yield bar


def _counting(group: Iterator[Loaded], bar: Any) -> Iterator[Loaded]:
    for each in group:
        yield each
        if bar is not None:
            bar.update()
