"""Patches of the encoder estimated from what lies near them: the rest stays as in the base run.

A patch of some seconds changes the stream there, and by attention, layer after
layer, everywhere; but far away by little, and in the padding behind a recording,
most of Whisper's 30 s, by next to nothing. So only positions near the patch are
computed anew. They read all others' keys and values as the base run has them.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from hooked_whisper.config import POSITIONS_PER_SECOND
from hooked_whisper.hooks.points import is_watched
from hooked_whisper.interventions.examples import Example
from hooked_whisper.interventions.sites import Site
from hooked_whisper.metrics.base import Metric
from hooked_whisper.model.kv_cache import KVCache
from hooked_whisper.model.whisper import HookedWhisper
from hooked_whisper.patching.partial_forward import ENCODER_OUTPUT, FRESH_BYTES, BaseRun
from hooked_whisper.patching.resume_point import (
    PatchedRow,
    StreamPosition,
    find_resume_point,
    join_rows,
    run_blocks_with_joins,
)


class NearbyRun(BaseRun):
    """A base run whose patched rows hold only the encoder positions near their patches.

    Args:
        reach_s: How far from a patch positions are computed anew, in seconds.

    The others are `BaseRun`'s.
    """

    def __init__(
        self,
        model: HookedWhisper,
        example: Example,
        names: Sequence[str],
        metric: Metric | None,
        reach_s: float,
    ) -> None:
        self.reach = round(reach_s * POSITIONS_PER_SECOND)
        super().__init__(model, example, names, metric)

    def _needed(self, runs_encoder: bool) -> list[str]:
        kept = self.model.hook_names("encoder.blocks.*.attn.hook_[kv]")
        return sorted({*super()._needed(runs_encoder), *kept})

    def groups(self, rows: Sequence[PatchedRow], max_bytes: int) -> Iterator[list[int]]:
        """Rows of one length side by side, in the order in which they join the stream."""
        lengths = [len(self._near(row)) for row in rows]
        cfg = self.model.cfg
        for length in sorted(set(lengths)):
            same = [number for number, each in enumerate(lengths) if each == length]
            same.sort(key=lambda number: rows[number].order)
            keys = cfg.n_audio_ctx * cfg.d_model
            floats = length * (12 * cfg.d_model + 3 * cfg.d_mlp) + 5 * keys
            n = max(1, min(max_bytes // (4 * floats), FRESH_BYTES // (4 * keys)))
            for first in range(0, len(same), n):
                yield same[first : first + n]

    def _near(self, row: PatchedRow) -> range:
        """The positions that a row computes anew: its patch, and as far around as is reached."""
        hook_point, shape = self.model.hook_dict[row.point.name], self.cache[row.point.site].shape
        part = row.edit.site.part(hook_point, shape)
        places = range(1) if part is None else part.global_places[1]
        n_audio = self.model.cfg.n_audio_ctx
        n = min(places[-1] + 1 - places[0] + 2 * self.reach, n_audio)
        start = min(max(0, places[0] - self.reach), n_audio - n)
        return range(start, start + n)

    def _run_encoder(self, rows: Sequence[PatchedRow]) -> Tensor:
        near = [self._near(row) for row in rows]
        encoder = self.model.encoder
        joins: dict[StreamPosition, list[Tensor]] = {}
        for row, here in zip(rows, near, strict=True):
            joins.setdefault(row.position, []).append(self._stream(row, here))
        blocks: Any = encoder.blocks
        keys = _KeysInPlace(self._keys(), near)
        steps = [
            [
                block.hook_resid_pre,
                partial(block.attend, kv_cache=keys),
                block.feed_forward,
            ]
            for block in blocks
        ]
        joined = {position: join_rows(streams) for position, streams in joins.items()}
        resid = encoder.finish(run_blocks_with_joins(steps, joined))
        return _in_place(self._output(ENCODER_OUTPUT), resid, near)

    def _stream(self, row: PatchedRow, here: range) -> Tensor:
        """The stream that a row begins with, near its patch."""
        near = slice(here.start, here.stop)
        whole = self._patched(row.point, [row], 0)[:, near]
        if row.point.base is None:
            return whole
        block = self.model.encoder.blocks[row.point.layer]
        return row.point.stream_behind(block, self._output(row.point.base)[:, near], whole)

    def _keys(self) -> dict[nn.Module, Tensor]:
        """The base run's keys and values, by the projections that made them."""
        found: dict[nn.Module, Tensor] = {}
        blocks: Any = self.model.encoder.blocks
        for layer, block in enumerate(blocks):
            for letter, module in (("k", block.attn.key), ("v", block.attn.value)):
                found[module] = self._output(f"encoder.blocks.{layer}.attn.hook_{letter}")
        return found


class _KeysInPlace(KVCache):
    """The base run's keys and values, with those of a row's own positions in their places."""

    def __init__(self, kept: dict[nn.Module, Tensor], near: Sequence[range]) -> None:
        super().__init__()
        self.kept, self.near = kept, near

    def append(self, module: nn.Module, new: Tensor) -> Tensor:
        return _in_place(self.kept[module], new, self.near[: len(new)])


def _in_place(base: Tensor, new: Tensor, near: Sequence[range]) -> Tensor:
    """What the base run holds, with each row's own positions where they belong."""
    whole = base.repeat(len(new), *[1] * (base.ndim - 1))
    for row, here in enumerate(near):
        whole[row, here.start : here.stop] = new[row]
    return whole


def stays_near(model: HookedWhisper) -> Callable[[str, Site], bool]:
    """A function that tells of which sites a patch can be followed nearby alone.

    Of those that are a time of the encoder, in the stream or what is added to it,
    while nothing else looks at the encoder: it would see a few positions.
    """
    is_free = not is_watched(*model.encoder.modules())

    def tell(name: str, site: Site) -> bool:
        has_time = site.window_s is not None or isinstance(site.pos, int)
        if not (is_free and has_time and name.startswith("encoder.blocks.")):
            return False
        return not find_resume_point(name, model.cfg).needs_hook

    return tell
