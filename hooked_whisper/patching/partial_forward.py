"""Patched runs from where they begin to differ, many of them side by side.

`BaseRun` holds what one run computed. Its `resume(patches)` runs the model with
each patch, and `finish` says what it says then. Nothing is computed twice: rows join
the residual stream at the layer that they are patched in; decoder rows hold
only the positions from the first patched one on, behind the base run's keys
and values; the encoder is not run for the decoder's patches, nor are
cross-attention's keys and values.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hooked_whisper.config import Stack
from hooked_whisper.hooks.collector import any_hooked
from hooked_whisper.hooks.passes import PassInfo, running
from hooked_whisper.hooks.points import HookPoint
from hooked_whisper.hooks.splice import Reader, Splice
from hooked_whisper.interventions.examples import Example
from hooked_whisper.model.kv_cache import KVCache
from hooked_whisper.model.whisper import HookedWhisper
from hooked_whisper.patching.resume_point import Entry, Stop, find_entry
from hooked_whisper.patching.rows import PatchedRow, Rows, patch_rows
from hooked_whisper.patching.stream import Step, joined, resid_behind, ride, write

DEFAULT_MAX_BYTES = 256 * 2**20
"""About how much memory runs side by side take, unless told otherwise."""


class BaseRun:
    """What a run of one example computed, ready to be resumed anywhere.

    Args:
        model: The model. Its hooks act in resumed runs as in the base run.
        example: One recording and its tokens.
        names: Hooks that will be patched.
        positions: Decoder positions whose logits are wanted; None is all.
        encoder_output: Used instead of running the encoder, where only the
            decoder will be patched.
    """

    def __init__(
        self,
        model: HookedWhisper,
        example: Example,
        names: Sequence[str],
        positions: Sequence[int] | None = None,
        encoder_output: Float[Tensor, "1 audio_pos d_model"] | None = None,
    ) -> None:
        self.model, self.example = model, example
        # What a transcoder reads may lie anywhere before the place where a row would join.
        self._has_readers = any(
            isinstance(each, Reader) for point in model.hook_dict.values() for each in point.splices
        )
        self.entries = {name: find_entry(name, model.cfg, self._has_readers) for name in names}
        self._patches_decoder = any(each.stack == "decoder" for each in self.entries.values())
        n = example.n_pos
        self.positions = torch.arange(n) if positions is None else torch.tensor(positions) % n
        # A function of the user's may count positions or rows: give it the whole text.
        self.is_hooked = any(point.has_any_hook for point in model.hook_dict.values())
        self._reads_last_only = self.positions.tolist() == [n - 1]
        with torch.no_grad():
            logits, self.cache = model.run_with_cache(
                example.mel if encoder_output is None else None,
                example.tokens,
                names_filter=self._needed(encoder_output is None),
                encoder_output=encoder_output,
            )
        if encoder_output is None:
            encoder_output = self._flow("encoder.ln_final.hook_normalized")
        self.encoder_output = encoder_output
        self.base_logits: Float[Tensor, "1 pos vocab"] = logits[:, self.positions]
        self._cross = self._cross_keys_and_values() if self._patches_decoder else {}

    def _needed(self, runs_encoder: bool) -> list[str]:
        """The activations that resumed runs begin with."""
        flows = {"decoder.blocks.0.hook_resid_mid"}
        needed = set()
        if runs_encoder:
            flows.add("encoder.ln_final.hook_normalized")
        for entry in self.entries.values():
            if entry.base is not None:
                flows.add(entry.base)
            if entry.kind not in ("hook", "start"):
                needed |= {entry.site, entry.name}
        if self._patches_decoder:
            flows |= set(self.model.hook_names("decoder.blocks.*attn.hook_[kv]"))
        return sorted(needed | {self._behind(name) for name in flows})

    def _behind(self, name: str) -> str:
        """The hook that sees what flows on from another: behind its autoencoders, if it has any."""
        splices = [each for each in self.model.hook_dict[name].splices if isinstance(each, Splice)]
        return str(splices[-1].points["output"].name) if splices else name

    def _flow(self, name: str) -> Tensor:
        """What flowed on from a hook in the base run."""
        return self.cache[self._behind(name)]

    def _cross_keys_and_values(self) -> dict[Any, Tensor]:
        """By projection, with each head's vectors together in memory, as every row reads them."""
        found = {}
        for layer, block in enumerate(self._blocks("decoder")):
            for name in ("key", "value"):
                kept = self._flow(f"decoder.blocks.{layer}.cross_attn.hook_{name[0]}")
                together = kept.transpose(1, 2).contiguous().transpose(1, 2)
                found[getattr(block.cross_attn, name)] = together
        return found

    def first_pos(self, patch: PatchedRow) -> int:
        """The first decoder position that a resumed run computes."""
        entry = self.entries[patch.name]
        whole = entry.stack == "encoder" or entry.kind == "start" or self.is_hooked
        return 0 if whole else patch.first_pos(self.model.hook_dict[patch.name])

    def group_key(self, patch: PatchedRow) -> tuple[Any, ...]:
        """Patches with the same key can run side by side; keys sort in the order of computing."""
        entry = self.entries[patch.name]
        alone = "" if entry.shares_audio and entry.kind != "start" else patch.name
        return (entry.stack, self.first_pos(patch), alone)

    @property
    def nbytes(self) -> int:
        """Memory of what is kept of the base run."""
        cross = sum(value.nbytes for value in self._cross.values())
        return self.cache.nbytes + self.base_logits.nbytes + cross

    def row_bytes(self, patch: PatchedRow) -> int:
        """About how much memory one row takes while it runs."""
        cfg, entry = self.model.cfg, self.entries[patch.name]
        n_pos, n_audio = self.example.n_pos - self.first_pos(patch), cfg.n_audio_ctx
        numbers = n_pos * (8 * cfg.d_model + 2 * cfg.d_mlp) + 3 * len(self.positions) * cfg.d_vocab
        if entry.stack == "encoder":
            numbers += n_audio * (12 * cfg.d_model + 3 * cfg.d_mlp)
        latents = self.model.hook_dict[patch.name].sizes.get("latent", 0)
        numbers += 4 * latents * (n_audio if entry.stack == "encoder" else n_pos)
        if entry.site.endswith(("hook_attn_scores", "hook_pattern")):
            n_query = n_audio if entry.stack == "encoder" else n_pos
            reads_text = entry.stack == "decoder" and entry.sublayer == "attn"
            n_key = self.example.n_pos if reads_text else n_audio
            numbers += 4 * cfg.n_heads(entry.stack) * n_query * n_key
        if not entry.shares_audio:
            numbers += 4 * n_audio * cfg.d_model
        return 4 * numbers

    @torch.no_grad()
    def resume(self, patches: Sequence[PatchedRow]) -> Rows:
        """The last residual stream with each of the patches, which have one `group_key`.

        Args:
            patches: Sorted by `order`; rows come in the same order.
        """
        start = self.first_pos(patches[0])
        first = int((self.positions < start).sum())
        with self._patching(patches, start), self._running(start):
            if self.entries[patches[0].name].stack == "encoder":
                resid = self._decode(self._encode(patches))
            else:
                resid = self._resume_decoder(patches, start)
            if self._finish_is_hooked():
                logits = self.model.decoder.finish(resid)
                return Rows(first, resid, logits[:, self.positions[first:] - start])
        if resid.shape[1] == len(self.positions) - first:
            return Rows(first, resid)
        return Rows(first, resid[:, self.positions[first:] - start])

    def _finish_is_hooked(self) -> bool:
        decoder = self.model.decoder
        final = decoder.ln_final
        return any_hooked([decoder.hook_logits, final.hook_scale, final.hook_normalized])

    @torch.no_grad()
    def finish(self, groups: Sequence[Rows]) -> Float[Tensor, "row n_some vocab"]:
        """The logits of groups of rows with the same `first`, which read the unembedding once."""
        finish = self.model.decoder.finish
        if all(rows.logits is None for rows in groups):
            return finish(joined([rows.stream for rows in groups]))
        return joined(
            [finish(rows.stream) if rows.logits is None else rows.logits for rows in groups]
        )

    @torch.no_grad()
    def encoder_outputs(self, patches: Sequence[PatchedRow]) -> Float[Tensor, "row pos d_model"]:
        """The encoder's output with each of some patches of the encoder, in order."""
        with self._patching(patches, 0), self._running(0):
            return self._encode(patches)

    def changes_nothing(self, patch: PatchedRow) -> bool:
        """Whether the base run holds just what is put in, so that its numbers are the answer."""
        base = self.cache.get(patch.name)
        if base is None or self.entries[patch.name].kind in ("hook", "start"):
            return False
        return patch.equals(base, self.model.hook_dict[patch.name])

    def order(self, patch: PatchedRow) -> tuple[Any, ...]:
        """Sorts patches into the order of computing, rows of one hook together."""
        return (self.entries[patch.name].stop, patch.name)

    # The two stacks

    def _encode(self, patches: Sequence[PatchedRow]) -> Tensor:
        """The encoder's output with each patch."""
        encoder = self.model.encoder
        boarding = self._boarding(patches, 0, lambda n: encoder.embed(self._mel(n)))
        steps = (
            [block.hook_resid_pre, block.attend, block.feed_forward]
            for block in self._blocks("encoder")
        )
        return encoder.finish(ride(steps, boarding, len(encoder.blocks)))

    def _decode(self, encoder_output: Tensor) -> Tensor:
        """The decoder's last stream for several encoder outputs: it first differs in block 0."""
        n_rows = len(encoder_output)
        if self._has_readers:
            resid = self._embed_tokens(n_rows)
            return self._ride_decoder({Stop(0, 0): resid}, encoder_output, None, 0)
        resid = self._flow("decoder.blocks.0.hook_resid_mid").expand(n_rows, -1, -1)
        return self._ride_decoder({Stop(0, 2): resid}, encoder_output, None, 0)

    def _embed_tokens(self, n_rows: int) -> Tensor:
        decoder, tokens = self.model.decoder, self.example.tokens
        return decoder.embed(tokens.expand(n_rows, -1), self.encoder_output.dtype)

    def _resume_decoder(self, patches: Sequence[PatchedRow], start: int) -> Tensor:
        """The decoder's last stream from position `start` on, with each patch."""
        n_rows = len(patches)
        cache, encoder_output = KVCache(), self.encoder_output
        for module, value in self._cross.items():
            cache[module] = value
        entry = self.entries[patches[0].name]
        if not entry.shares_audio:
            attention = self._blocks("decoder")[entry.layer].cross_attn
            del cache[attention.key], cache[attention.value]
            encoder_output = encoder_output.expand(n_rows, -1, -1)
        boarding = self._boarding(patches, start, self._embed_tokens)
        return self._ride_decoder(boarding, encoder_output, cache, start)

    def _ride_decoder(
        self,
        boarding: dict[Stop, Tensor],
        encoder_output: Tensor,
        cache: KVCache | None,
        start: int,
    ) -> Tensor:
        """The last stream; of the last position alone, if nothing reads or hooks the others."""
        blocks = self._blocks("decoder")
        n_layers = len(blocks)
        is_seen = _is_hooked(blocks[-1]) or self._finish_is_hooked()
        last_only = self._reads_last_only and not is_seen
        if last_only:
            trimmed = {
                stop: resid[:, -1:]
                for stop, resid in boarding.items()
                if stop >= Stop(n_layers - 1, 2)
            }
            boarding = {**boarding, **trimmed}

        def steps() -> Iterator[list[Step]]:
            for layer, block in enumerate(blocks):
                trim = last_only and layer == n_layers - 1
                attend = partial(self._attend, layer, cache, start, trim)
                cross = partial(self._cross_attend, layer, encoder_output, cache)
                yield [block.hook_resid_pre, attend, cross, block.feed_forward]

        return ride(steps(), boarding, n_layers)

    def _attend(
        self, layer: int, cache: KVCache | None, start: int, last_only: bool, resid: Tensor
    ) -> Tensor:
        """Self-attention of rows whose earlier positions are the base run's."""
        block = self._blocks("decoder")[layer]
        if start == 0 or cache is None:
            cache = None
        else:
            for letter, module in (("k", block.attn.key), ("v", block.attn.value)):
                kept = self._flow(f"decoder.blocks.{layer}.attn.hook_{letter}")[:, :start]
                cache[module] = kept.expand(len(resid), -1, -1, -1)
        if not last_only:
            return block.attend(resid, cache)
        x = block.ln1(resid)
        return resid[:, -1:] + block.attn(x[:, -1:], x, x, cache)[0]

    def _cross_attend(
        self, layer: int, encoder_output: Tensor, cache: KVCache | None, resid: Tensor
    ) -> Tensor:
        """Cross-attention of rows; those of one recording are only more queries, side by side."""
        block = self._blocks("decoder")[layer]
        if len(encoder_output) > 1 or len(resid) == 1 or _is_hooked(block):
            return block.cross_attend(resid, encoder_output, cache)
        side_by_side = resid.flatten(0, 1)[None]
        return block.cross_attend(side_by_side, encoder_output, cache).view(resid.shape)

    # Rows

    def _boarding(
        self, patches: Sequence[PatchedRow], start: int, embed: Callable[[int], Tensor]
    ) -> dict[Stop, Tensor]:
        """The streams with which rows join, by the place where they do; patches are in order."""
        boarding: dict[Stop, list[Tensor]] = {}
        for name in dict.fromkeys(patch.name for patch in patches):
            rows = [patch for patch in patches if patch.name == name]
            entry = self.entries[name]
            boarding.setdefault(entry.stop, []).append(self._enter(entry, rows, start, embed))
        return {stop: joined(streams) for stop, streams in boarding.items()}

    def _enter(
        self,
        entry: Entry,
        rows: Sequence[PatchedRow],
        start: int,
        embed: Callable[[int], Tensor],
    ) -> Tensor:
        """The residual stream of rows that are patched at one hook."""
        if entry.kind == "start":
            return embed(len(rows))
        if entry.kind == "hook":
            assert entry.base is not None
            return self._flow(entry.base)[:, start:].expand(len(rows), -1, -1)
        patched = self._patch(entry, rows, start)
        if entry.kind == "resid":
            return patched
        assert entry.base is not None
        block = self._blocks(entry.stack)[entry.layer]
        written = write(block, entry, patched)
        return resid_behind(block, entry)(self._flow(entry.base)[:, start:] + written)

    def _patch(self, entry: Entry, rows: Sequence[PatchedRow], start: int) -> Tensor:
        """What flows on from a hook that is patched in each row, or inside its autoencoders."""
        patched = self.cache[entry.site][:, start:].repeat_interleave(len(rows), dim=0)
        point = self.model.hook_dict[entry.site]
        if entry.name == entry.site:
            for number, row in enumerate(rows):
                row.write_to(patched[number : number + 1], point, start)
            return point.splice(patched)
        hook = (entry.name, partial(patch_rows, dict(enumerate(rows)), start))
        with self.model.hooks(fwd_hooks=[hook]):
            return point.splice(patched)

    @contextmanager
    def _patching(self, patches: Sequence[PatchedRow], start: int) -> Iterator[None]:
        """Hooks for the patches that nothing but a hook can do."""
        pairs = []
        for name in dict.fromkeys(patch.name for patch in patches):
            if self.entries[name].kind in ("hook", "start"):
                rows = {i: patch for i, patch in enumerate(patches) if patch.name == name}
                pairs.append((name, partial(patch_rows, rows, start)))
        with ExitStack() as stack:
            if pairs:
                stack.enter_context(self.model.hooks(fwd_hooks=pairs))
            yield

    def _running(self, start: int) -> AbstractContextManager[None]:
        """Tell hooks that they run on this example, and which decoder position comes first."""
        return running(PassInfo(first_pos=start, n_positions=self.example.mel.n_positions))

    def _blocks(self, stack: Stack) -> list[Any]:
        return list(self.model.encoder.blocks if stack == "encoder" else self.model.decoder.blocks)

    def _mel(self, n_rows: int) -> Tensor:
        return self.example.mel.values.expand(n_rows, -1, -1)


def _is_hooked(module: nn.Module) -> bool:
    """Whether anything sees an activation of a module."""
    return any_hooked(each for each in module.modules() if isinstance(each, HookPoint))
