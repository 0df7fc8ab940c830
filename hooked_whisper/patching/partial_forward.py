"""Patched runs from where they begin to differ, many of them side by side.

`BaseRun` holds what one run computed. Its `resume(rows)` runs the model with a
patch in each row, and `measure` says what a metric makes of that. Nothing is
computed twice: rows join the residual stream at the layer that they are patched
in; decoder rows hold only the positions from the first patched one on, behind
the base run's keys and values; the encoder is not run for the decoder's
patches, nor are cross-attention's keys and values.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import groupby
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from hooked_whisper.hooks.passes import PassInfo, running
from hooked_whisper.hooks.points import HookPoint, is_watched
from hooked_whisper.hooks.splice import Reader, Splice
from hooked_whisper.interventions.edits import HookPair, SiteEdit
from hooked_whisper.interventions.examples import Example
from hooked_whisper.interventions.sites import places_on
from hooked_whisper.metrics.base import Metric, PositionMetric, check_values, resolve_positions
from hooked_whisper.model.blocks import Step
from hooked_whisper.model.kv_cache import KVCache
from hooked_whisper.model.whisper import HookedWhisper
from hooked_whisper.patching.resume_point import (
    ResumePoint,
    StreamPosition,
    find_resume_point,
    join_rows,
    run_blocks_with_joins,
)

DEFAULT_MAX_BYTES = 256 * 2**20
"""About how much memory runs side by side take, unless told otherwise."""

_STARTS_TOGETHER = 4
"""Neighbouring first positions that run side by side: a few positions more, fewer passes."""
ENCODER_OUTPUT = "encoder.ln_final.hook_normalized"
_FIRST_READER = "decoder.blocks.0.hook_resid_mid"
"""The last stream of the decoder that does not depend on the recording."""


class PatchedRow(NamedTuple):
    """One row of a resumed run: an edit of one hook's activation, which treats rows alike."""

    name: str
    edit: SiteEdit


class ResumedRows(NamedTuple):
    """Resumed runs, at the wanted positions that can differ from the base run.

    Args:
        first: How many wanted positions come before the patches.
        resid: The last residual stream at the others.
        logits: The logits there, where hooks had to see them made.
    """

    first: int
    resid: Tensor
    logits: Tensor | None = None


class BaseRun:
    """What a run of one example computed, ready to be resumed anywhere.

    Args:
        model: The model. Its hooks act in resumed runs as in the base run.
        example: One recording and its tokens.
        names: Hooks that will be patched.
        metric: What will be measured of the logits; it says which positions are wanted.
        encoder_output: Used instead of running the encoder, where only the
            decoder will be patched.
    """

    def __init__(
        self,
        model: HookedWhisper,
        example: Example,
        names: Sequence[str],
        metric: Metric | None = None,
        encoder_output: Float[Tensor, "1 audio_pos d_model"] | None = None,
    ) -> None:
        self.model, self.example, self.metric = model, example, metric
        self._decoder_blocks: list[Any] = list(model.decoder.blocks)
        hook_points = model.hook_dict.values()
        # What a transcoder reads may lie anywhere before the place where a row would join.
        self._has_readers = any(
            isinstance(splice, Reader) for point in hook_points for splice in point.splices
        )
        self.points = {
            name: find_resume_point(name, model.cfg, self._has_readers) for name in names
        }
        n_pos = example.n_pos
        wanted = None if metric is None else resolve_positions(metric, n_pos)
        self.positions = torch.arange(n_pos) if wanted is None else torch.tensor(wanted)
        # A function of the user's may count positions or rows: give it the whole text.
        is_hooked = any(point.has_any_hook for point in hook_points)
        self._needs_whole_text = is_hooked or bool((self.positions.diff() < 0).any())
        self._reads_last_only = self.positions.tolist() == [n_pos - 1]
        self._patches_decoder = any(point.stack == "decoder" for point in self.points.values())
        with torch.no_grad():
            logits, self.cache = model.run_with_cache(
                example.mel if encoder_output is None else None,
                example.tokens,
                names_filter=self._needed(encoder_output is None),
                encoder_output=encoder_output,
            )
        if encoder_output is None:
            encoder_output = self._output(ENCODER_OUTPUT)
        self.encoder_output = encoder_output
        self.base_logits: Float[Tensor, "1 n_wanted vocab"] = logits[:, self.positions]

    def _needed(self, runs_encoder: bool) -> list[str]:
        """The activations that resumed runs go on from."""
        outputs = {_FIRST_READER}
        needed = set()
        if runs_encoder:
            outputs.add(ENCODER_OUTPUT)
        for point in self.points.values():
            if point.base is not None:
                outputs.add(point.base)
            if not point.needs_hook:
                needed |= {point.site, point.name}
        if self._patches_decoder:
            outputs |= set(self.model.hook_names("decoder.blocks.*attn.hook_[kv]"))
        return sorted(needed | {output_name(self.model, name) for name in outputs})

    def _output(self, name: str) -> Tensor:
        """What came out of a hook in the base run."""
        return self.cache[output_name(self.model, name)]

    # Which rows run side by side

    def groups(self, rows: Sequence[PatchedRow], max_bytes: int) -> Iterator[list[int]]:
        """Numbers of rows to `resume` together, as many as fit in the memory, in its order."""
        starts = [self._first_pos(row) for row in rows]
        keyed: dict[Any, list[int]] = defaultdict(list)
        for number, (row, start) in enumerate(zip(rows, starts, strict=True)):
            point = self.points[row.name]
            alone = "" if point.shares_audio and point.kind != "start" else row.name
            n_before = int((self.positions < start).sum())
            keyed[point.stack, n_before, start // _STARTS_TOGETHER, alone].append(number)
        for key in sorted(keyed):
            numbers = sorted(
                keyed[key], key=lambda i: (self.points[rows[i].name].position, rows[i].name)
            )
            start = min(starts[i] for i in numbers)
            names = {rows[i].name for i in numbers}
            n = max(
                1, max_bytes // max(self._row_bytes(self.points[name], start) for name in names)
            )
            for first in range(0, len(numbers), n):
                yield numbers[first : first + n]

    def _first_pos(self, row: PatchedRow) -> int:
        """The first decoder position that a resumed run has to compute."""
        point, site = self.points[row.name], row.edit.site
        if point.stack == "encoder" or point.kind == "start" or self._needs_whole_text:
            return 0
        if site.pos is None or not {"pos", "query"} & set(self.model.hook_dict[row.name].axes):
            return 0
        n_pos = self.example.n_pos
        places = places_on(site.pos, n_pos, "position", row.name, may_be_absent=True)
        return min((place for place in places if 0 <= place < n_pos), default=0)

    def _row_bytes(self, point: ResumePoint, start: int) -> int:
        """About how much memory one row takes while it runs."""
        n_latents = self.model.hook_dict[point.name].sizes.get("latent", 0)
        n_floats = point.row_floats(self.model.cfg, start, self.example.n_pos, n_latents)
        # The logits, their copy, and what the metric makes of them.
        return 4 * (n_floats + 3 * len(self.positions) * self.model.cfg.d_vocab)

    @property
    def nbytes(self) -> int:
        """Memory of what is kept of the base run."""
        cross = sum(value.nbytes for value in self._cross.values())
        return self.cache.nbytes + self.base_logits.nbytes + cross

    def changes_nothing(self, row: PatchedRow) -> bool:
        """Whether the base run holds just what is put in, so that its numbers are the answer."""
        base = self.cache.get(row.name)
        if base is None or self.points[row.name].needs_hook:
            return False
        hook_point = self.model.hook_dict[row.name]
        part = row.edit.site.part(hook_point, base.shape)
        if part is None:
            return True
        old = part.read(base, hook_point)
        return bool(torch.equal(old, row.edit.change(old, part, hook_point).to(old).expand_as(old)))

    # Running them

    @torch.no_grad()
    def resume(self, rows: Sequence[PatchedRow]) -> ResumedRows:
        """The last residual stream with each of the patches: a group of `groups`, in its order."""
        start = min(self._first_pos(row) for row in rows)
        first = int((self.positions < start).sum())
        with self._running(rows, start):
            if self.points[rows[0].name].stack == "encoder":
                resid = self._run_decoder_anew(self._run_encoder(rows))
            else:
                resid = self._resume_decoder(rows, start)
            logits = self.model.decoder.finish(resid) if self._finish_is_hooked() else None
        if resid.shape[1] != len(self.positions) - first:
            wanted = self.positions[first:] - start
            resid = resid[:, wanted]
            logits = None if logits is None else logits[:, wanted]
        return ResumedRows(first, resid, logits)

    @torch.no_grad()
    def encoder_outputs(self, rows: Sequence[PatchedRow]) -> Float[Tensor, "row pos d_model"]:
        """The encoder's output with each of some patches of the encoder, in order."""
        with self._running(rows, 0):
            return self._run_encoder(rows)

    @contextmanager
    def _running(self, rows: Sequence[PatchedRow], start: int) -> Iterator[None]:
        """Patch what nothing but a hook can; hooks know which position of what comes first."""
        hooks = []
        for name in dict.fromkeys(row.name for row in rows):
            if self.points[name].needs_hook:
                edits = {i: row.edit for i, row in enumerate(rows) if row.name == name}
                hooks.append(_hook(name, edits, start))
        info = PassInfo(first_pos=start, n_positions=self.example.mel.n_positions)
        with self.model.hooks(fwd_hooks=hooks), running(info):
            yield

    def _run_encoder(self, rows: Sequence[PatchedRow]) -> Tensor:
        """The encoder's output with each patch."""
        encoder, mel = self.model.encoder, self.example.mel.values
        joins = self._joins(rows, 0, lambda n: encoder.embed(mel.expand(n, -1, -1)))
        blocks: Any = encoder.blocks
        steps = [block.steps() for block in blocks]
        return encoder.finish(run_blocks_with_joins(steps, joins))

    def _run_decoder_anew(self, encoder_output: Tensor) -> Tensor:
        """The decoder's last stream for several encoder outputs: it first differs in block 0."""
        n_rows = len(encoder_output)
        if self._has_readers:
            joins = {StreamPosition(0, 0): self._embed(n_rows)}
        else:
            joins = {StreamPosition(0, 2): self._output(_FIRST_READER).expand(n_rows, -1, -1)}
        return self._run_decoder(joins, encoder_output, None)

    def _resume_decoder(self, rows: Sequence[PatchedRow], start: int) -> Tensor:
        """The decoder's last stream from position `start` on, with each patch."""
        cache, encoder_output = KVCache(), self.encoder_output
        for module, value in self._cross.items():
            cache[module] = value
        if start:
            for layer, block in enumerate(self._decoder_blocks):
                for letter, module in (("k", block.attn.key), ("v", block.attn.value)):
                    kept = self._output(f"decoder.blocks.{layer}.attn.hook_{letter}")
                    cache[module] = kept[:, :start]
        point = self.points[rows[0].name]
        if not point.shares_audio:
            attention = self._decoder_blocks[point.layer].cross_attn
            del cache[attention.key], cache[attention.value]
            encoder_output = encoder_output.expand(len(rows), -1, -1)
        return self._run_decoder(self._joins(rows, start, self._embed), encoder_output, cache)

    def _run_decoder(
        self, joins: dict[StreamPosition, Tensor], encoder_output: Tensor, cache: KVCache | None
    ) -> Tensor:
        """The last stream; of the last position alone, if nothing reads or hooks the others."""
        blocks = self._decoder_blocks
        is_watched_block = [is_watched(*block.modules()) for block in blocks]
        steps = [block.steps(encoder_output, cache) for block in blocks]
        if self._reads_last_only and not is_watched_block[-1] and not self._finish_is_hooked():
            last = slice(-1, None)
            steps[-1] = blocks[-1].steps(encoder_output, cache, last)
            behind_keys = StreamPosition(len(blocks) - 1, 2)
            joins = {
                position: resid[:, last] if position >= behind_keys else resid
                for position, resid in joins.items()
            }
        for of_block, watched in zip(steps, is_watched_block, strict=True):
            if len(encoder_output) == 1 and not watched:
                of_block[2] = _in_one_row(of_block[2])
        return run_blocks_with_joins(steps, joins)

    def _embed(self, n_rows: int) -> Tensor:
        tokens = self.example.tokens.expand(n_rows, -1)
        return self.model.decoder.embed(tokens, self.encoder_output.dtype)

    @cached_property
    def _cross(self) -> dict[Any, Tensor]:
        """Cross-attention's keys and values by projection, each head's together in memory."""
        found: dict[Any, Tensor] = {}
        if self._patches_decoder:
            for layer, block in enumerate(self._decoder_blocks):
                for letter, module in (("k", "key"), ("v", "value")):
                    kept = self._output(f"decoder.blocks.{layer}.cross_attn.hook_{letter}")
                    together = kept.transpose(1, 2).contiguous().transpose(1, 2)
                    found[getattr(block.cross_attn, module)] = together
        return found

    # The streams that rows begin with

    def _joins(
        self, rows: Sequence[PatchedRow], start: int, embed: Callable[[int], Tensor]
    ) -> dict[StreamPosition, Tensor]:
        """The streams with which rows join, by position."""
        joins = defaultdict(list)
        for name, of_name in groupby(rows, key=lambda row: row.name):
            point, edits = self.points[name], [row.edit for row in of_name]
            if point.kind == "start":
                resid = embed(len(edits))
            elif point.kind == "hook":
                resid = self._output(str(point.base))[:, start:].expand(len(edits), -1, -1)
            else:
                resid = self._patched(point, edits, start)
                if point.kind != "resid":
                    stack = self.model.encoder if point.stack == "encoder" else self.model.decoder
                    before = self._output(str(point.base))[:, start:]
                    resid = point.stream_behind(stack.blocks[point.layer], before, resid)
            joins[point.position].append(resid)
        return {position: join_rows(streams) for position, streams in joins.items()}

    def _patched(self, point: ResumePoint, edits: list[SiteEdit], start: int) -> Tensor:
        """What comes out of a hook that is edited in each row, or inside its autoencoders."""
        value = self.cache[point.site][:, start:].repeat_interleave(len(edits), dim=0)
        hook_point = self.model.hook_dict[point.site]
        by_row = dict(enumerate(edits))
        if point.name == point.site:
            _edit_rows(by_row, start, value, hook_point)
            return hook_point.splice(value)
        with self.model.hooks(fwd_hooks=[_hook(point.name, by_row, start)]):
            return hook_point.splice(value)

    # What comes of them

    @torch.no_grad()
    def measure(self, groups: Sequence[ResumedRows]) -> Float[Tensor, " row"]:
        """The metric of groups of rows with the same `first`, which read the unembedding once."""
        metric, first = self.metric, groups[0].first
        assert metric is not None
        logits = self._logits(groups)
        n_rows = len(logits)
        if isinstance(metric, PositionMetric):
            numbers = metric.at_positions(logits, first)
            if first:
                before = self._base_numbers[:, :first].expand(n_rows, -1)
                numbers = torch.cat([before, numbers], dim=1)
            return check_values(metric.combine(numbers), n_rows, metric)
        if first:
            before = self.base_logits[:, :first].expand(n_rows, -1, -1)
            logits = torch.cat([before, logits], dim=1)
        return check_values(metric.of_positions(logits), n_rows, metric)

    @cached_property
    def _base_numbers(self) -> Tensor:
        """The numbers that the metric is made of, at each wanted position of the base run."""
        assert isinstance(self.metric, PositionMetric)
        return self.metric.at_positions(self.base_logits)

    def _logits(self, groups: Sequence[ResumedRows]) -> Float[Tensor, "row n_some vocab"]:
        finish = self.model.decoder.finish
        if all(rows.logits is None for rows in groups):
            return finish(join_rows([rows.resid for rows in groups]))
        return join_rows(
            [finish(rows.resid) if rows.logits is None else rows.logits for rows in groups]
        )

    def _finish_is_hooked(self) -> bool:
        decoder = self.model.decoder
        final = decoder.ln_final
        return is_watched(decoder.hook_logits, final.hook_scale, final.hook_normalized)


def output_name(model: HookedWhisper, name: str) -> str:
    """The hook that sees what comes out of another: behind its autoencoders, if it has any."""
    splices = [each for each in model.hook_dict[name].splices if isinstance(each, Splice)]
    return str(splices[-1].points["output"].name) if splices else name


def _in_one_row(step: Step) -> Step:
    """Cross-attention of rows of one recording, which are only more queries side by side."""
    return lambda resid: step(resid.flatten(0, 1)[None]).view(resid.shape)


def _hook(name: str, edits: dict[int, SiteEdit], start: int) -> HookPair:
    """A hook that edits some rows, each by itself."""

    def function(value: Tensor, hook: HookPoint) -> Tensor:
        value = value.clone()
        _edit_rows(edits, start, value, hook)
        return value

    return name, function


def _edit_rows(edits: dict[int, SiteEdit], start: int, value: Tensor, hook: HookPoint) -> None:
    first_pos = start if str(hook.name).startswith("decoder") else 0
    for number, edit in edits.items():
        edit.write_to(value[number : number + 1], hook, first_pos)
