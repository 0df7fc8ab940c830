"""Every edge patched for true: the receiver alone reads the other run's output of the sender.

A patched edge changes what one head or MLP writes, in one place. So each edge becomes a row that
joins the residual stream there, and nothing before it is computed again: what a sender's change
makes of queries, keys and values is computed once for all heads of a layer, rows run on side by
side, those in the decoder behind the base run's cross-attention keys and values.
"""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hooked_whisper.circuits.contributions import Differences, attention_of, norm_of
from hooked_whisper.circuits.graph import EdgeGraph, ReadSite
from hooked_whisper.hooks.passes import running
from hooked_whisper.interventions.examples import Example
from hooked_whisper.metrics.base import Metric
from hooked_whisper.model.kv_cache import KVCache
from hooked_whisper.model.whisper import HookedWhisper
from hooked_whisper.patching.partial_forward import FRESH_BYTES, BaseRun
from hooked_whisper.patching.resume_point import ResumedRows, StreamPosition

NEEDED = ["*.hook_z", "*.hook_mlp_out"]
Measured = tuple[list[int], Float[Tensor, " some"]]
"""Numbers of edges, and the metric with each of them patched."""


class EdgeRuns(BaseRun):
    """A run whose edges can be patched one by one.

    Args:
        model: The model, without hooks.
        example: One recording and its tokens.
        metric: What is measured.
        max_bytes: About how much memory rows side by side may take.
    """

    def __init__(
        self, model: HookedWhisper, example: Example, metric: Metric, max_bytes: int
    ) -> None:
        super().__init__(model, example, model.hook_names(NEEDED), metric)
        self.max_bytes = max_bytes
        self.graph = EdgeGraph.of(model.cfg)

    def patched(self, differences: Differences, todo: Bool[Tensor, " edge"]) -> Iterator[Measured]:
        """The metric with each of some edges patched, a few at a time, without gradients."""
        base = self.measure([ResumedRows(0, self._last_stream[:, self.positions])])
        for site in self.graph.sites:
            for i, sender in enumerate(site.senders):
                numbers = range(site.first + i * len(site.receivers), site.edges.stop)
                numbers = numbers[: len(site.receivers)]
                if bool(todo[numbers.start : numbers.stop].any()) and differences.is_zero(sender):
                    mine = [number for number in numbers if todo[number]]
                    todo[mine] = False
                    yield mine, base.expand(len(mine))
        with running(self._info(0)):
            yield from self._in_encoder(differences, todo)
            yield from self._in_decoder(differences, todo)

    @property
    def _last_stream(self) -> Tensor:
        return self._behind("decoder", len(self._decoder_blocks) - 1)

    def _behind(self, stack: str, layer: int) -> Tensor:
        """The base run's stream behind a block."""
        mid = "hook_resid_mid" if stack == "encoder" else "hook_resid_mid_cross"
        prefix = f"{stack}.blocks.{layer}."
        return self.cache[prefix + mid] + self.cache[prefix + "hook_mlp_out"]

    # In the encoder

    def _in_encoder(self, differences: Differences, todo: Tensor) -> Iterator[Measured]:
        blocks: Any = self.model.encoder.blocks
        outputs: list[Tensor] = []
        numbers: list[int] = []
        cfg = self.model.cfg
        row_bytes = 4 * cfg.n_audio_ctx * cfg.d_model
        most = max(1, self.max_bytes // (4 * row_bytes))
        for site in self.graph.sites:
            if site.stack != "encoder":
                break
            for some, rows in self._encoder_rows(site, differences, todo):
                for block in blocks[site.layer + 1 :]:
                    rows = block(rows)
                outputs.append(self.model.encoder.finish(rows))
                numbers += some
                if len(numbers) >= most:
                    yield self._decoded(numbers, outputs)
                    outputs, numbers = [], []
        if numbers:
            yield self._decoded(numbers, outputs)

    def _decoded(self, numbers: list[int], outputs: list[Tensor]) -> Measured:
        """The metric with each of some encoder outputs."""
        resid = self._run_decoder_anew(torch.cat(outputs))
        return numbers, self.measure([self._wanted(resid)])

    def _encoder_rows(
        self, site: ReadSite, differences: Differences, todo: Tensor
    ) -> Iterator[tuple[list[int], Float[Tensor, "row pos d_model"]]]:
        """The streams behind a block with each of its edges patched, a few at a time."""
        block: Any = self.model.encoder.blocks[site.layer]
        n_rows = self._rows_at_once()
        mid = self.cache[f"encoder.blocks.{site.layer}.hook_resid_mid"]
        for first, numbers in self._by_sender(site, todo):
            change = differences.of(site.senders[first])
            if site.sublayer == "mlp":
                yield numbers, mid + block.mlp(block.ln2(mid + change))
                continue
            heads = self._heads_changed(site, change[None])[0]
            chosen = [number - site.first - first * len(site.receivers) for number in numbers]
            for start in range(0, len(chosen), n_rows):
                rows = mid + self._written(site, heads, chosen[start : start + n_rows])
                yield numbers[start : start + n_rows], block.feed_forward(rows)

    def _rows_at_once(self) -> int:
        """Rows of the encoder side by side."""
        cfg = self.model.cfg
        point = self.points["encoder.blocks.0.hook_mlp_out"]
        n = self.max_bytes // self._row_bytes(point, 0)
        if self.model.device.type == "cpu":
            n = min(n, FRESH_BYTES // (4 * cfg.n_audio_ctx * cfg.d_mlp))
        return max(1, n)

    def _by_sender(self, site: ReadSite, todo: Tensor) -> Iterator[tuple[int, list[int]]]:
        """Each sender with edges to be done, and their numbers."""
        n = len(site.receivers)
        for i in range(len(site.senders)):
            first = site.first + i * n
            numbers = [first + j for j in todo[first : first + n].nonzero().flatten().tolist()]
            if numbers:
                yield i, numbers

    # What heads write when they read something else

    def _heads_changed(
        self, site: ReadSite, changes: Float[Tensor, "sender read_pos d_model"]
    ) -> Float[Tensor, "sender receiver query d_head"]:
        """How much else each head reads if its queries, keys or values come of a changed stream.

        Heads do not read each other, so that one pass with all of them changed is one of each.
        """
        attention, norm = attention_of(self.model, site), norm_of(self.model, site)
        kind = "attn" if site.sublayer == "attn" else "cross_attn"
        prefix = f"{site.stack}.blocks.{site.layer}."
        q_stream = self.cache[prefix + ("hook_resid_pre" if kind == "attn" else "hook_resid_mid")]
        z = self.cache[f"{prefix}{kind}.hook_z"]
        if site.sublayer == "cross_kv":
            x = norm(self._behind("encoder", self.model.cfg.n_audio_layers - 1) + changes)
        else:
            x = norm(q_stream + changes)
        base = {
            "q": lambda: attention.project(attention.query, self._normed(site, q_stream)),
            "k": lambda: self._key_or_value(site, "key"),
            "v": lambda: self._key_or_value(site, "value"),
        }
        found = []
        for part in {"attn": "qkv", "cross_q": "q", "cross_kv": "kv"}[site.sublayer]:
            linear = {"q": attention.query, "k": attention.key, "v": attention.value}[part]
            read = {each: make() for each, make in base.items() if each != part}
            read[part] = attention.project(linear, x)
            n = len(changes)
            if site.sublayer == "cross_q":  # rows of one recording are so many queries of it
                read["q"] = read["q"].flatten(0, 1)[None]
                new = attention.attend(**read)[0].unflatten(1, (n, -1))[0]
            else:
                new = attention.attend(**{k: v.expand(n, -1, -1, -1) for k, v in read.items()})[0]
            found.append((new - z).transpose(1, 2))
        return torch.cat(found, dim=1)

    def _normed(self, site: ReadSite, stream: Tensor) -> Tensor:
        """What queries are made of in the base run."""
        block: Any = getattr(self.model, site.stack).blocks[site.layer]
        return (block.ln1 if site.sublayer == "attn" else block.ln2)(stream)

    def _key_or_value(self, site: ReadSite, which: str) -> Tensor:
        """A layer's keys or values in the base run."""
        attention = attention_of(self.model, site)
        if site.sublayer != "attn":
            return self._cross[getattr(attention, which)]
        if site.stack == "decoder":
            return self.cache[f"decoder.blocks.{site.layer}.attn.hook_{which[0]}"]
        stream = self.cache[f"encoder.blocks.{site.layer}.hook_resid_pre"]
        return attention.project(getattr(attention, which), self._normed(site, stream))

    def _written(
        self, site: ReadSite, heads: Float[Tensor, "receiver pos d_head"], chosen: list[int]
    ) -> Float[Tensor, "row pos d_model"]:
        """What is added to the stream where some receivers of a sender change."""
        attention = attention_of(self.model, site)
        W_O = attention.W_O.to(heads.dtype)[[number % attention.n_heads for number in chosen]]
        return heads[chosen] @ W_O

    # In the decoder

    def _in_decoder(self, differences: Differences, todo: Tensor) -> Iterator[Measured]:
        joins: dict[StreamPosition, list[Tensor]] = defaultdict(list)
        numbers: list[int] = []
        point = self.points["decoder.blocks.0.hook_mlp_out"]
        most = max(1, self.max_bytes // self._row_bytes(point, 0))
        for site in self.graph.sites:
            if site.stack == "encoder":
                continue
            for some, position, rows in self._decoder_rows(site, differences, todo):
                for start in range(0, len(some), most):
                    joins[position].append(rows[start : start + most])
                    numbers += some[start : start + most]
                    if len(numbers) >= most:
                        yield self._run_on(numbers, joins)
                        joins, numbers = defaultdict(list), []
        if numbers:
            yield self._run_on(numbers, joins)

    def _run_on(self, numbers: list[int], joins: dict[StreamPosition, list[Tensor]]) -> Measured:
        """The metric of rows of the decoder that join its stream."""
        cache = KVCache()
        for module, value in self._cross.items():
            cache[module] = value
        streams = {position: torch.cat(rows) for position, rows in joins.items()}
        resid = self._run_decoder(streams, self.encoder_output, cache)
        return numbers, self.measure([self._wanted(resid)])

    def _wanted(self, resid: Tensor) -> ResumedRows:
        """The last stream at the positions that the metric reads."""
        n_pos = len(self.positions)
        return ResumedRows(0, resid if resid.shape[1] == n_pos else resid[:, self.positions])

    def _decoder_rows(
        self, site: ReadSite, differences: Differences, todo: Tensor
    ) -> Iterator[tuple[list[int], StreamPosition, Float[Tensor, "row pos d_model"]]]:
        """The streams in the decoder with each of a site's edges patched, and where they join."""
        n_receivers = len(site.receivers)
        for first, changes in differences.of_all(site.senders):
            # A sender of the sound is large: one at a time.
            step = 1 if site.sublayer == "cross_kv" else len(changes)
            for start in range(0, len(changes), step):
                some = changes[start : start + step]
                begin = site.first + (first + start) * n_receivers
                chosen = todo[begin : begin + len(some) * n_receivers].nonzero().flatten().tolist()
                if not chosen:
                    continue
                rows, position = self._rows_of(site, some, chosen)
                yield [begin + number for number in chosen], position, rows

    def _rows_of(
        self, site: ReadSite, changes: Float[Tensor, "sender read_pos d_model"], chosen: list[int]
    ) -> tuple[Float[Tensor, "row pos d_model"], StreamPosition]:
        """Some of the rows of these senders and all their receivers, and where they join."""
        layer = site.layer
        if site.sublayer == "logits":
            return (self._last_stream + changes)[chosen], StreamPosition(layer, 0)
        prefix = f"decoder.blocks.{layer}."
        block: Any = self.model.decoder.blocks[layer]
        if site.sublayer == "mlp":
            mid = self.cache[prefix + "hook_resid_mid_cross"]
            return mid + block.mlp(block.ln3(mid + changes[chosen])), StreamPosition(layer + 1, 0)
        heads = self._heads_changed(site, changes).flatten(0, 1)
        is_cross = site.sublayer != "attn"
        behind = self.cache[prefix + ("hook_resid_mid_cross" if is_cross else "hook_resid_mid")]
        rows = behind + self._written(site, heads, chosen)
        return rows, StreamPosition(layer, 3 if is_cross else 2)
