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
from functools import cached_property
from itertools import groupby
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hooked_whisper.hooks.passes import PassInfo, running
from hooked_whisper.hooks.points import is_watched
from hooked_whisper.hooks.splice import Reader
from hooked_whisper.interrupts import Temporarily
from hooked_whisper.interventions.edits import SiteEdit
from hooked_whisper.interventions.examples import Example
from hooked_whisper.interventions.sites import places_on
from hooked_whisper.metrics.base import Metric, PositionMetric, check_values, resolve_positions
from hooked_whisper.model.kv_cache import KVCache
from hooked_whisper.model.whisper import HookedWhisper
from hooked_whisper.patching.resume_point import (
    PatchedRow,
    ResumedRows,
    ResumePoint,
    StreamPosition,
    decoder_steps,
    edit_rows,
    find_resume_point,
    hook_of_rows,
    join_rows,
    output_name,
    run_blocks_with_joins,
)

DEFAULT_MAX_BYTES = 256 * 2**20
"""About how much memory runs side by side take, unless told otherwise."""

FRESH_BYTES = 24 * 2**20
"""Of one activation on a CPU: for larger ones, malloc takes new pages from the system each time."""
STARTS_TOGETHER = 4
"""Neighbouring first positions that run side by side: a few positions more, fewer passes."""
ENCODER_OUTPUT = "encoder.ln_final.hook_normalized"
_FIRST_READER = "decoder.blocks.0.hook_resid_mid"
"""The last stream of the decoder that does not depend on the recording."""


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
            if point.stack == "decoder" and point.position.step > 1:
                outputs.add(_behind_block(point.layer))
        if self._patches_decoder:
            outputs |= set(self.model.hook_names("decoder.blocks.*attn.hook_[kv]"))
        return sorted(needed | {output_name(self.model, name) for name in outputs})

    def _output(self, name: str) -> Tensor:
        """What came out of a hook in the base run."""
        return self.cache[output_name(self.model, name)]

    # Which rows run side by side

    def row(self, name: str, edit: SiteEdit) -> PatchedRow:
        """A row that is patched at one of the hooks."""
        point, pos, n_pos = self.points[name], edit.site.pos, self.example.n_pos
        has_positions = {"pos", "query"} & set(self.model.hook_dict[name].axes)
        is_whole = point.stack == "encoder" or point.kind == "start" or self._needs_whole_text
        if is_whole or pos is None or not has_positions:
            return PatchedRow(point, edit)
        places = places_on(pos, n_pos, "position", name, may_be_absent=True)
        start = min((place for place in places if 0 <= place < n_pos), default=0)
        is_alone = len(places) == 1 and point.position.step > 1 and not point.needs_hook
        return PatchedRow(point, edit, start, start if is_alone else None)

    def groups(self, rows: Sequence[PatchedRow], max_bytes: int) -> Iterator[list[int]]:
        """Numbers of rows to `resume` together, as many as fit in the memory, in its order."""
        keyed: dict[Any, list[int]] = defaultdict(list)
        for number, row in enumerate(rows):
            alone = "" if row.point.shares_audio and row.point.kind != "start" else row.point.name
            n_before = int((self.positions < row.start).sum())
            keyed[row.point.stack, n_before, row.start // STARTS_TOGETHER, alone].append(number)
        for key in sorted(keyed):
            numbers = sorted(keyed[key], key=lambda i: rows[i].order)
            start = min(rows[i].start for i in numbers)
            points = {rows[i].point for i in numbers}
            n = max_bytes // max(self._row_bytes(point, start) for point in points)
            if key[0] == "encoder" and self.model.device.type == "cpu":
                cfg = self.model.cfg
                n = min(n, FRESH_BYTES // (4 * cfg.n_audio_ctx * cfg.d_mlp))
            n = max(1, n)
            for first in range(0, len(numbers), n):
                yield numbers[first : first + n]

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
        """Whether the base run's numbers are the answer: it holds the same, or nothing reads it."""
        name, site = row.point.name, row.edit.site
        is_last = row.position.layer == len(self._decoder_blocks)
        if row.only_pos is not None and is_last and row.only_pos not in self.positions:
            return True
        base = self.cache.get(name)
        if base is None or row.point.needs_hook:
            return False
        hook_point = self.model.hook_dict[name]
        part = site.part(hook_point, base.shape)
        if part is None:
            return True
        old = part.read(base, hook_point)
        return bool(torch.equal(old, row.edit.change(old, part, hook_point).to(old).expand_as(old)))

    # Running them

    @torch.no_grad()
    def resume(self, rows: Sequence[PatchedRow]) -> ResumedRows:
        """The last residual stream with each of the patches: a group of `groups`, in its order."""
        start = min(row.start for row in rows)
        first = int((self.positions < start).sum())
        with self._patching(rows, start), running(self._info(start)):
            if rows[0].point.stack == "encoder":
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
        with self._patching(rows, 0), running(self._info(0)):
            return self._run_encoder(rows)

    def _info(self, start: int) -> PassInfo:
        """What hooks know: which position of what comes first."""
        return PassInfo(first_pos=start, n_positions=self.example.mel.n_positions)

    def _patching(self, rows: Sequence[PatchedRow], start: int) -> Temporarily[Any]:
        """Patch what nothing but a hook can."""
        hooks, first_row = [], 0
        for point, of_point in groupby(rows, key=lambda row: row.point):
            some = list(of_point)
            if point.needs_hook:
                hooks.append(hook_of_rows(some, start, first_row))
            first_row += len(some)
        return self.model.hooks(fwd_hooks=hooks)

    def _run_encoder(self, rows: Sequence[PatchedRow]) -> Tensor:
        """The encoder's output with each patch."""
        encoder, mel = self.model.encoder, self.example.mel.values
        joins = self._joins(rows, 0, lambda n: encoder.embed(mel.expand(n, -1, -1)))
        blocks: Any = encoder.blocks
        steps = [block.steps() for block in blocks]
        return encoder.finish(run_blocks_with_joins(steps, joins))

    def _run_decoder_anew(self, encoder_output: Tensor) -> Tensor:
        """The decoder's last stream for several encoder outputs: it first differs in block 0."""
        n_rows, position = len(encoder_output), StreamPosition(0, 0 if self._has_readers else 2)
        resid = self._embed(n_rows) if self._has_readers else self._output(_FIRST_READER)
        return self._run_decoder({position: resid.expand(n_rows, -1, -1)}, encoder_output, None)

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
        point = rows[0].point
        if not point.shares_audio:
            attention = self._decoder_blocks[point.layer].cross_attn
            del cache[attention.key], cache[attention.value]
            encoder_output = encoder_output.expand(len(rows), -1, -1)
        joins = self._joins(rows, start, self._embed, cache)
        return self._run_decoder(joins, encoder_output, cache)

    def _run_decoder(
        self, joins: dict[StreamPosition, Tensor], encoder_output: Tensor, cache: KVCache | None
    ) -> Tensor:
        """The last stream; of the last position alone, if nothing reads or hooks the others."""
        n_layers = len(self._decoder_blocks)
        steps = [decoder_steps(block, encoder_output, cache) for block in self._decoder_blocks]
        is_seen = is_watched(*self._decoder_blocks[-1].modules()) or self._finish_is_hooked()
        if self._reads_last_only and not is_seen:
            last = slice(-1, None)
            steps[-1] = decoder_steps(self._decoder_blocks[-1], encoder_output, cache, last)
            behind_keys = StreamPosition(n_layers - 1, 2)
            joins = {
                position: resid[:, last] if position >= behind_keys else resid
                for position, resid in joins.items()
            }
        return run_blocks_with_joins(steps, joins)

    def _embed(self, n_rows: int) -> Tensor:
        decoder, tokens = self.model.decoder, self.example.tokens.expand(n_rows, -1)
        return decoder.embed(tokens, self.encoder_output.dtype)

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
        self,
        rows: Sequence[PatchedRow],
        start: int,
        embed: Callable[[int], Tensor],
        cache: KVCache | None = None,
    ) -> dict[StreamPosition, Tensor]:
        """The streams with which rows join, by position."""
        joins = defaultdict(list)
        for (point, _), of_point in groupby(rows, key=lambda row: (row.point, row.position)):
            some = list(of_point)
            if point.kind == "start":
                resid = embed(len(some))
            elif point.kind == "hook":
                resid = self._output(str(point.base))[:, start:].expand(len(some), -1, -1)
            else:
                resid = self._patched(point, some, start)
                if point.base is not None:
                    before = self._output(point.base)[:, start:]
                    stack = self.model.encoder if point.stack == "encoder" else self.model.decoder
                    resid = point.stream_behind(stack.blocks[point.layer], before, resid)
            if some[0].only_pos is not None:
                resid = self._behind_block(point, some, start, resid, cache)
            joins[some[0].position].append(resid)
        return {position: join_rows(streams) for position, streams in joins.items()}

    def _patched(self, point: ResumePoint, rows: Sequence[PatchedRow], start: int) -> Tensor:
        """What comes out of a hook that is patched in each row, or inside its autoencoders."""
        value = self.cache[point.site][:, start:].repeat_interleave(len(rows), dim=0)
        hook_point = self.model.hook_dict[point.site]
        if point.name == point.site:
            edit_rows(rows, start, value, hook_point)
            return hook_point.splice(value)
        with self.model.hooks(fwd_hooks=[hook_of_rows(rows, start)]):
            return hook_point.splice(value)

    def _behind_block(
        self,
        point: ResumePoint,
        rows: Sequence[PatchedRow],
        start: int,
        resid: Tensor,
        cache: KVCache | None,
    ) -> Tensor:
        """The stream behind the block of rows that differ from the base run at one position."""
        places = torch.tensor([int(row.only_pos or 0) - start for row in rows])
        numbers = torch.arange(len(rows))
        changed = resid[numbers, places][:, None]
        steps = decoder_steps(self._decoder_blocks[point.layer], self.encoder_output, cache)
        for step in steps[point.position.step :]:
            changed = step(changed)
        behind = self._output(_behind_block(point.layer))[:, start:]
        behind = behind.repeat_interleave(len(rows), dim=0)
        behind[numbers, places] = changed[:, 0]
        return behind

    # What comes of them

    @torch.no_grad()
    def measure(self, groups: Sequence[ResumedRows]) -> Float[Tensor, " row"]:
        """The metric of groups of rows with the same `first`, which read the unembedding once."""
        metric, first, tokens = self.metric, groups[0].first, None
        assert metric is not None
        if (narrow := metric.of_some_tokens()) is not None and not self._finish_is_hooked():
            metric, tokens = narrow
        logits = self._logits(groups, tokens)
        n_rows = len(logits)
        if isinstance(metric, PositionMetric):
            numbers = metric.at_positions(logits, first)
            if first:
                before = self._base_numbers[:, :first].expand(n_rows, -1)
                numbers = torch.cat([before, numbers], dim=1)
            return check_values(metric.combine(numbers), n_rows, metric)
        if first:
            kept = self.base_logits if tokens is None else self.base_logits[..., tokens]
            logits = torch.cat([kept[:, :first].expand(n_rows, -1, -1), logits], dim=1)
        return check_values(metric.of_positions(logits), n_rows, metric)

    @cached_property
    def _base_numbers(self) -> Tensor:
        """The numbers that the metric is made of, at each wanted position of the base run."""
        assert isinstance(self.metric, PositionMetric)
        return self.metric.at_positions(self.base_logits)

    def _logits(
        self, groups: Sequence[ResumedRows], tokens: list[int] | None
    ) -> Float[Tensor, "row n_some vocab"]:
        finish = self.model.decoder.finish
        if all(rows.logits is None for rows in groups):
            return finish(join_rows([rows.resid for rows in groups]), tokens)
        return join_rows(
            [finish(rows.resid) if rows.logits is None else rows.logits for rows in groups]
        )

    def _finish_is_hooked(self) -> bool:
        decoder = self.model.decoder
        final = decoder.ln_final
        return is_watched(decoder.hook_logits, final.hook_scale, final.hook_normalized)


def _behind_block(layer: int) -> str:
    return f"decoder.blocks.{layer}.hook_resid_post"
