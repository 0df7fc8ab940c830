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

from hooked_whisper.circuits.contributions import (
    WRITTEN,
    Differences,
    attention_of,
    norm_of,
    read_by,
)
from hooked_whisper.circuits.graph import EdgeGraph, ReadSite
from hooked_whisper.hooks.cache import WhisperCache
from hooked_whisper.hooks.passes import running
from hooked_whisper.interventions.examples import Example
from hooked_whisper.metrics.base import Metric
from hooked_whisper.model.kv_cache import KVCache
from hooked_whisper.model.layers import gelu
from hooked_whisper.model.whisper import HookedWhisper
from hooked_whisper.patching.partial_forward import FRESH_BYTES, BaseRun
from hooked_whisper.patching.resume_point import ResumedRows, StreamPosition

NEEDED = ["*.hook_z", "*.hook_mlp_out"]
Measured = tuple[list[int], Float[Tensor, " some"]]
"""Numbers of edges, and the metric with each of them patched."""


def edge_runs(
    model: HookedWhisper,
    base: Example,
    source: Example | WhisperCache,
    metric: Metric,
    max_bytes: int,
) -> tuple["EdgeRuns", Differences]:
    """The runs in which edges of a pair are patched, and what is put in along them."""
    theirs, ours = (read_by(model, run, WRITTEN) for run in (source, base))
    differences = Differences(model, theirs, ours, max_bytes)
    del theirs, ours
    return EdgeRuns(model, base, metric, max_bytes), differences


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
        self._qkv: tuple[Any, dict[str, Tensor]] | None = None
        self._pattern: Tensor | None = None

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

    def patched_at(
        self, differences: Differences, number: int, masks: Float[Tensor, "window pos"]
    ) -> Float[Tensor, " window"]:
        """The metric with an edge into cross-attention patched at the positions of each mask."""
        [site] = [each for each in self.graph.sites if number in range(*each.edges.indices(10**9))]
        sender, receiver = divmod(number - site.first, len(site.receivers))
        change = differences.of(site.senders[sender])
        n = max(1, self.max_bytes // (8 * change.nbytes))
        found = []
        with running(self._info(0)):
            for some in masks.to(change).split(n):
                chosen = [i * len(site.receivers) + receiver for i in range(len(some))]
                rows, position = self._rows_of(site, some[:, :, None] * change, chosen)
                found.append(self._run_on([], {position: [rows]})[1])
        return torch.cat(found)

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
        numbers: list[int] = []
        cfg, size = self.model.cfg, self.encoder_output.nbytes
        most = max(self._rows_at_once(), min(int(todo.sum()), self.max_bytes // (4 * size)))
        # Memory that is used again and again: new pages cost as much as a layer.
        outputs = self.encoder_output.new_empty(most, cfg.n_audio_ctx, cfg.d_model)
        for site in self.graph.sites:
            if site.stack != "encoder":
                break
            for some, rows in self._encoder_rows(site, differences, todo):
                for block in blocks[site.layer + 1 :]:
                    rows = block(rows)
                if len(numbers) + len(some) > most:
                    yield self._decoded(numbers, outputs)
                    numbers = []
                outputs[len(numbers) : len(numbers) + len(some)] = self.model.encoder.finish(rows)
                numbers += some
        if numbers:
            yield self._decoded(numbers, outputs)

    def _decoded(self, numbers: list[int], outputs: Tensor) -> Measured:
        """The metric with each of some encoder outputs."""
        resid = self._run_decoder_anew(outputs[: len(numbers)])
        return numbers, self.measure([self._wanted(resid)])

    def _encoder_rows(
        self, site: ReadSite, differences: Differences, todo: Tensor
    ) -> Iterator[tuple[list[int], Float[Tensor, "row pos d_model"]]]:
        """The streams behind a block with each of its edges patched, a few at a time."""
        block: Any = self.model.encoder.blocks[site.layer]
        n_rows, reader = self._rows_at_once(), None
        mid = self.cache[f"encoder.blocks.{site.layer}.hook_resid_mid"]
        for first, numbers in self._by_sender(site, todo):
            change = differences.of(site.senders[first])
            if site.sublayer == "mlp":
                yield numbers, mid + block.mlp(block.ln2(mid + change))
                continue
            heads = self._heads_changed(site, change[None])[0]
            chosen = [number - site.first - first * len(site.receivers) for number in numbers]
            reader = reader or _MLPReader(block, mid)
            for start in range(0, len(chosen), n_rows):
                some = chosen[start : start + n_rows]
                rows = mid + self._written(site, heads, some)
                heads_of = [number % block.n_heads for number in some]
                yield (
                    numbers[start : start + n_rows],
                    reader.feed_forward(rows, heads[some], heads_of),
                )

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
        found = []
        for part in {"attn": "qkv", "cross_q": "q", "cross_kv": "kv"}[site.sublayer]:
            linear = {"q": attention.query, "k": attention.key, "v": attention.value}[part]
            read = {**self._base_qkv(site), part: attention.project(linear, x)}
            n = len(changes)
            if part == "v" and (pattern := self._base_pattern(site)) is not None:
                found.append(pattern @ (read["v"] - self._base_qkv(site)["v"]).transpose(1, 2))
                continue
            if site.sublayer == "cross_q":  # rows of one recording are so many queries of it
                read["q"] = read["q"].flatten(0, 1)[None]
                new = attention.attend(**read)[0].unflatten(1, (n, -1))[0]
            else:
                new = attention.attend(**{k: v.expand(n, -1, -1, -1) for k, v in read.items()})[0]
            found.append((new - z).transpose(1, 2))
        return torch.cat(found, dim=1)

    def _base_qkv(self, site: ReadSite) -> dict[str, Tensor]:
        """A layer's queries, keys and values in the base run; kept until another layer is asked."""
        if self._qkv is None or self._qkv[0] != (site.stack, site.layer, site.sublayer == "attn"):
            block: Any = getattr(self.model, site.stack).blocks[site.layer]
            prefix = f"{site.stack}.blocks.{site.layer}."
            attention = attention_of(self.model, site)
            if site.sublayer == "attn":
                x = block.ln1(self.cache[prefix + "hook_resid_pre"])
                k, v = (attention.project(each, x) for each in (attention.key, attention.value))
            else:
                x = block.ln2(self.cache[prefix + "hook_resid_mid"])
                k, v = self._cross[attention.key], self._cross[attention.value]
            q = attention.project(attention.query, x)
            place = (site.stack, site.layer, site.sublayer == "attn")
            self._qkv, self._pattern = (place, {"q": q, "k": k, "v": v}), None
        return self._qkv[1]

    def _base_pattern(self, site: ReadSite) -> Float[Tensor, "1 head query key"] | None:
        """A layer's pattern in the encoder, by which other values are read; None if it is large."""
        qkv, cfg = self._base_qkv(site), self.model.cfg
        size = 4 * cfg.n_audio_heads * cfg.n_audio_ctx**2
        is_exact = qkv["q"].dtype in (torch.float32, torch.float64)
        if site.stack != "encoder" or size > self.max_bytes // 4 or not is_exact:
            return None
        if self._pattern is None:
            q, k = (qkv[part].transpose(1, 2) * qkv[part].shape[-1] ** -0.25 for part in "qk")
            scores = q @ k.mT
            self._pattern = torch.softmax(scores, dim=-1, out=scores)
        return self._pattern

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


class _MLPReader:
    """A block's MLP on streams that differ from the base run's by what one head writes.

    The first matrix meets the base run's stream once, and of each row only the head's few
    dimensions: a LayerNorm is linear but for its scale, by which the sum of both is divided.

    Args:
        block: The block.
        mid: The base run's stream before its MLP.
    """

    def __init__(self, block: Any, mid: Float[Tensor, "1 pos d_model"]) -> None:
        self.block, self.is_fused = block, mid.dtype in (torch.float32, torch.float64)
        if not self.is_fused:  # where another order of products shows
            return
        norm, fc_in = block.ln2, block.mlp.fc_in
        dtype = mid.dtype
        reads = fc_in.weight.to(dtype) * norm.weight.to(dtype)
        writes = block.attn.W_O.to(dtype)
        self.of_base = (mid - mid.mean(dim=-1, keepdim=True))[0] @ reads.T
        self.of_heads = (writes - writes.mean(dim=-1, keepdim=True)) @ reads.T
        self.bias = norm.bias.to(dtype) @ fc_in.weight.to(dtype).T + fc_in.bias.to(dtype)

    def feed_forward(
        self,
        rows: Float[Tensor, "row pos d_model"],
        changes: Float[Tensor, "row pos d_head"],
        heads: list[int],
    ) -> Float[Tensor, "row pos d_model"]:
        """The streams behind the block.

        Args:
            rows: The streams before its MLP.
            changes: What each row's head reads otherwise than in the base run.
            heads: The heads.
        """
        if not self.is_fused:
            return self.block.feed_forward(rows)
        norm = self.block.ln2
        _, _, scale = torch.native_layer_norm(rows, norm.weight.shape, None, None, norm.eps)
        pre = changes @ self.of_heads[heads]
        pre += self.of_base
        torch.addcmul(self.bias, pre, scale, out=pre)
        return rows + self.block.mlp.fc_out(gelu(pre, overwrite=True))
