"""A run of a circuit alone: all that comes along other edges comes from the corrupted run."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hooked_whisper.circuits.contributions import WRITTEN, attention_of, first_positions, norm_of
from hooked_whisper.circuits.graph import EdgeGraph, ReadSite
from hooked_whisper.config import Stack
from hooked_whisper.errors import AlignmentError
from hooked_whisper.hooks.cache import WhisperCache
from hooked_whisper.hooks.passes import PassInfo, running
from hooked_whisper.interventions.examples import Example
from hooked_whisper.model.whisper import HookedWhisper

_OUTPUT = "encoder.ln_final.hook_normalized"


class _Stream:
    """A residual stream as it grows, and how far what was written differs from the corrupted run.

    Args:
        resid: The stream.
        changes: What each node that has written would have written in the corrupted run, less
            what it wrote.
    """

    def __init__(self, resid: Float[Tensor, "1 pos d_model"], changes: Tensor) -> None:
        self.resid, self.changes = resid, changes

    def add(self, written: Tensor, changes: Float[Tensor, "sender pos d_model"]) -> None:
        """Let a sublayer write."""
        self.resid = self.resid + written
        self.changes = torch.cat([self.changes, changes])


class CircuitRun:
    """One recording, run with any circuit.

    Every node reads the stream of this run, with what came along edges outside the circuit
    exchanged for what the corrupted run has there.

    Args:
        model: The model, without hooks.
        clean: The recording, and its tokens.
        corrupted: Another one with as many tokens; or what nodes write on average.

    Source: `evaluate_graph` of EAP-IG.
    """

    def __init__(
        self, model: HookedWhisper, clean: Example, corrupted: Example | WhisperCache
    ) -> None:
        self.model, self.clean, self.corrupted = model, clean, corrupted
        self.graph = EdgeGraph.of(model.cfg)
        encoder: Any = [name for name in model.hook_names(WRITTEN) if name.startswith("encoder")]
        self._source: dict[str, Tensor] = {}
        self._source_audio: Tensor | None = None
        with torch.no_grad():
            if isinstance(corrupted, Example):
                audio, cache = model.run_with_cache(corrupted.mel, names_filter=encoder)
                self._source_audio = audio
                self._source |= dict(cache.items())
            else:
                self._source |= {name: corrupted[name] for name in encoder}
            self._embedded = model.run_with_cache(
                clean.mel,
                names_filter="encoder.blocks.0.hook_resid_pre",
                stop_at_layer=("encoder", 1),
            )[1]["encoder.blocks.0.hook_resid_pre"]
        self._encoded: tuple[Tensor, _Stream] | None = None
        self._keys: dict[int, tuple[Tensor, Tensor, Tensor]] = {}

    @torch.no_grad()
    def logits(
        self,
        mask: Bool[Tensor, " edge"],
        tokens: Int[Tensor, "1 pos"] | None = None,
        positions: list[int] | None = None,
    ) -> Float[Tensor, "1 some vocab"]:
        """The logits that a circuit gives by itself.

        Args:
            mask: Which edges are in it.
            tokens: The decoder's, in both runs; None is each run's own.
            positions: Whose logits; None is all.
        """
        with running(PassInfo(n_positions=self.clean.mel.n_positions)):
            audio = self._encode(mask)
        source = self._decoder_source(tokens)
        tokens = self.clean.tokens if tokens is None else tokens
        with running(PassInfo()):
            stream = self._begin(
                "decoder", self.model.decoder.embed(tokens, audio.resid.dtype), source
            )
            for site in self.graph.sites:
                if site.stack == "decoder" and site.sublayer != "cross_q":
                    if site.sublayer == "logits":
                        return self._finish(site, mask, stream, positions)
                    self._sublayer(site, mask, stream, source, audio)
        raise AssertionError

    def _encode(self, mask: Tensor) -> _Stream:
        """The encoder's stream at its end; kept, as many circuits differ behind it only."""
        mine = mask[: self._n_encoder_edges]
        if self._encoded is None or not torch.equal(self._encoded[0], mine):
            stream = self._begin("encoder", self._embedded, self._source)
            for site in self.graph.sites:
                if site.stack == "encoder":
                    self._sublayer(site, mask, stream, self._source, stream)
            self._encoded, self._keys = (mine.clone(), stream), {}
        return self._encoded[1]

    @property
    def _n_encoder_edges(self) -> int:
        return next(site.first for site in self.graph.sites if site.stack == "decoder")

    def _decoder_source(self, tokens: Tensor | None) -> Mapping[str, Tensor]:
        """What the decoder's nodes write in the corrupted run."""
        names = [name for name in self.model.hook_names(WRITTEN) if name.startswith("decoder")]
        if not isinstance(self.corrupted, Example):
            n_pos = (self.clean.tokens if tokens is None else tokens).shape[1]
            return {name: first_positions(self.corrupted[name], n_pos) for name in names}
        if tokens is None:
            tokens = self.corrupted.tokens
        return self.model.run_with_cache(
            None, tokens, encoder_output=self._source_audio, names_filter=names
        )[1]

    def _begin(self, stack: Stack, resid: Tensor, source: Mapping[str, Tensor]) -> _Stream:
        name = f"{stack}.blocks.0.hook_resid_pre"
        if source[name].shape[1] not in (1, resid.shape[1]):
            raise AlignmentError(
                f"the corrupted run has {source[name].shape[1]} positions in the {stack} and this "
                f"one {resid.shape[1]}. Give both as many; take means over texts as long."
            )
        return _Stream(resid, (source[name] - resid).expand_as(resid))

    def _read(
        self, site: ReadSite, mask: Tensor, stream: _Stream
    ) -> Float[Tensor, "receiver_or_all pos d_model"]:
        """What each receiver of a site reads, normalized; a single one where all read alike."""
        n = len(site.receivers)
        outside = ~mask[site.edges].view(-1, n).T
        kinds, which = outside.unique(dim=0, return_inverse=True)
        resid, changes = stream.resid, stream.changes[: kinds.shape[1]]
        kinds = kinds.to(resid)
        if kinds.any():
            resid = resid + (kinds @ changes.flatten(1)).unflatten(1, changes.shape[1:])
        x: Tensor = norm_of(self.model, site)(resid)
        return x if len(x) == 1 else x[which]

    def _sublayer(
        self,
        site: ReadSite,
        mask: Tensor,
        stream: _Stream,
        source: Mapping[str, Tensor],
        audio: _Stream,
    ) -> None:
        """Let a sublayer read and write."""
        block: Any = getattr(self.model, site.stack).blocks[site.layer]
        prefix = f"{site.stack}.blocks.{site.layer}"
        if site.sublayer == "mlp":
            written = block.mlp(self._read(site, mask, stream))
            changes = source[f"{prefix}.hook_mlp_out"] - written
            stream.add(written, changes.expand_as(written))
            return
        attention = attention_of(self.model, site)
        kind = "attn" if site.sublayer == "attn" else "cross_attn"
        if site.sublayer == "attn":
            read = self._for_heads(self._read(site, mask, stream), attention.n_heads, 3)
            linears = (attention.query, attention.key, attention.value)
            q, k, v = (attention.project(*each) for each in zip(linears, read, strict=True))
        else:
            of_queries = self.graph.sites[self.graph.sites.index(site) - 1]
            [x] = self._for_heads(self._read(of_queries, mask, stream), attention.n_heads, 1)
            q = attention.project(attention.query, x)
            k, v = self._keys_and_values(site, mask, audio)
        z = attention.attend(q, k, v)[0]
        changes = (source[f"{prefix}.{kind}.hook_z"] - z)[0].transpose(0, 1)
        stream.add(attention.write(z), changes @ attention.W_O.to(z.dtype))

    def _keys_and_values(
        self, site: ReadSite, mask: Tensor, audio: _Stream
    ) -> tuple[Tensor, Tensor]:
        """Of cross-attention; kept, as many circuits differ elsewhere only."""
        mine, attention = mask[site.edges], attention_of(self.model, site)
        kept = self._keys.get(site.layer)
        if kept is None or not torch.equal(kept[0], mine):
            read = self._for_heads(self._read(site, mask, audio), attention.n_heads, 2)
            linears = (attention.key, attention.value)
            k, v = (attention.project(*each) for each in zip(linears, read, strict=True))
            kept = self._keys[site.layer] = (mine.clone(), k, v)
        return kept[1], kept[2]

    def _for_heads(
        self, x: Tensor, n_heads: int, n_parts: int
    ) -> list[Float[Tensor, "1 pos *head d_model"]]:
        """What a site's receivers read, by queries, keys and values."""
        if len(x) == 1:
            return [x] * n_parts
        return [part.transpose(0, 1)[None] for part in x.split(n_heads)]

    def _finish(
        self, site: ReadSite, mask: Tensor, stream: _Stream, positions: list[int] | None
    ) -> Tensor:
        """The logits, of the stream that their edges make."""
        outside = ~mask[site.edges]
        resid = stream.resid
        if outside.any():
            resid = resid + torch.einsum("s,spm->pm", outside.to(resid), stream.changes)
        return self.model.decoder.finish(resid if positions is None else resid[:, positions])
