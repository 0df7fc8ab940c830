"""Edits of who attends to whom, before the softmax: every row still sums to 1.

All act on `hook_attn_scores`, which a layer computes step by step once
something looks at it, to within 1e-5 of the fused attention.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hooked_whisper.config import Stack
from hooked_whisper.errors import AlignmentError, InterventionError, SiteError, check_count
from hooked_whisper.hooks.names import NamesFilter
from hooked_whisper.hooks.points import HookPoint
from hooked_whisper.interventions.ablation import check_stack
from hooked_whisper.interventions.edits import Edit, HookPair, rows_for
from hooked_whisper.interventions.sites import (
    Positions,
    Window,
    check_window,
    first_pos,
    places_on,
    window_to_places,
)
from hooked_whisper.model.whisper import HookedWhisper

Heads = int | Sequence[int] | None

_SCORES = "hook_attn_scores"


class _CutEdges(Edit):
    """An edit that takes edges from the attention: their scores become -inf."""

    @abstractmethod
    def _cut(self, name: str, start: int, n_query: int, n_key: int) -> Bool[Tensor, "query key"]:
        """Which edges of a pass to cut."""

    def _hooks(self, model: HookedWhisper, names: list[str], heads: Heads) -> list[HookPair]:
        def function(scores: Tensor, hook: HookPoint) -> Tensor | None:
            name, (_, n_head, n_query, n_key) = hook.name or "", scores.shape
            start = first_pos(name)
            cut = self._cut(name, start, n_query, n_key) & head_mask(heads, n_head, name)
            if not bool(cut.any()):
                return None
            edited = scores.masked_fill(cut.to(scores.device), float("-inf"))
            emptied = (edited.detach().amax(dim=-1) == float("-inf")).nonzero()
            if len(emptied):
                _, head, query = emptied[0].tolist()
                raise InterventionError(
                    f"no key is left at {name!r} to query {start + query} of head {head}: its "
                    "pattern would be NaN. Several edits together cut them all; cut fewer."
                )
            return edited

        return [(name, function) for name in names]


@dataclass(frozen=True)
class RestrictAttention(_CutEdges):
    """Let a stack's positions attend no further than so many positions to either side.

    In the encoder a position is 20 ms. The decoder stays causal, and counts
    its own tokens.

    Args:
        stack: `"encoder"` or `"decoder"`: its self-attention. (Cross-attention
            has no diagonal: cut a window of it with `CutAttention`.)
        half_width: Positions to either side; 0 leaves a position itself alone.
        heads: Heads to restrict, in each layer; None is all.
        layers: Layers to restrict; None is all.

    Source: Reid 2023, where 75 left Tiny's transcripts roughly intact, 50
        garbled them and 10 emptied them.
    """

    stack: Stack
    half_width: int
    heads: Heads = None
    layers: int | Sequence[int] | None = None

    def hooks(self, model: HookedWhisper) -> list[HookPair]:
        check_stack(self.stack)
        check_count("half_width", self.half_width, 0, InterventionError)
        n_layers = model.cfg.n_layers(self.stack)
        every = range(n_layers) if self.layers is None else self.layers
        layers = places_on(every, n_layers, "layer", self.stack)
        names = [f"{self.stack}.blocks.{layer}.attn.{_SCORES}" for layer in layers]
        head_mask(self.heads, model.cfg.n_heads(self.stack), names[0])
        return self._hooks(model, names, self.heads)

    def _cut(self, name: str, start: int, n_query: int, n_key: int) -> Bool[Tensor, "query key"]:
        near = torch.ones(n_query, n_key, dtype=torch.bool)
        return ~near.tril(start + self.half_width).triu(start - self.half_width)


@dataclass(frozen=True)
class CutAttention(_CutEdges):
    """Cut edges from queries to keys; the other keys of a row share what these had.

    Args:
        name: A `hook_attn_scores`, or a glob, shorthand or list of them.
        query: Positions that attend; None is all. While decoding, decoder
            positions keep the numbers that they have in the whole text, and
            negative ones count from the newest.
        key: Positions no longer attended to, counted likewise.
        window_s: In place of `key`: a time of the recording in seconds, for
            keys that are encoder positions (the encoder's self-attention and
            cross-attention).
        head: Heads to cut in; None is all.

    A row must keep a key, or its softmax would be NaN: an edit that cuts all
    keys of a query is refused. To keep the decoder's tokens from the first
    one, write `query=slice(1, None), key=0`, as the first has no other.
    """

    name: NamesFilter
    query: Positions | None = None
    key: Positions | None = None
    window_s: Window | None = None
    head: Heads = None

    def hooks(self, model: HookedWhisper) -> list[HookPair]:
        names = score_names(model, self.name)
        if self.key is not None and self.window_s is not None:
            raise SiteError("both key and window_s are given; pass one of them.")
        if self.window_s is not None:
            check_window(self.window_s, model.cfg.window_s)
        for name in names:
            self._check(model, name)
        return self._hooks(model, names, self.head)

    def _cut(self, name: str, start: int, n_query: int, n_key: int) -> Bool[Tensor, "query key"]:
        is_query = _mark(self.query, start + n_query, "query", name)[start:]
        return is_query[:, None] & self._is_key(name, n_key)

    def _is_key(self, name: str, n_key: int) -> Bool[Tensor, " key"]:
        if self.window_s is None:
            return _mark(self.key, n_key, "key", name)
        start, end = window_to_places(self.window_s)
        return _mark(slice(min(start, n_key - 1), end), n_key, "key", name)

    def _check(self, model: HookedWhisper, name: str) -> None:
        """Refuse what is not there, and rows that would have no key left."""
        _, n_head, n_query, n_key = model.axis_sizes(name)
        head_mask(self.head, n_head or 0, name)
        if self.window_s is not None and n_key is None:
            raise SiteError(
                f"the keys of {name!r} are tokens, which have no time. Give key instead of "
                "window_s."
            )
        n_text = model.cfg.n_text_ctx
        for wanted, n, what in (
            (self.query, n_query, "query position"),
            (self.key, n_key, "key position"),
        ):
            if wanted is not None:
                places_on(wanted, n or n_text, what, name)
        cut = self._is_key(name, n_key or n_text)
        if not bool(cut.all()):
            if n_key is not None or _counts_from_end(self.key) or _counts_from_end(self.query):
                return  # what the newest are is known in the pass, and checked there
            # Of the decoder's tokens, the first see few keys: here, none but those cut.
            cut = cut.cumprod(dim=0).bool() & _mark(self.query, n_text, "query", name)
            if not bool(cut.any()):
                return
        raise InterventionError(
            f"query {self.query!r} would lose every key at {name!r}, or some of these queries "
            "would: its pattern would be NaN. Leave it a key, or leave out such queries (the "
            "first token sees only itself) with query=slice(1, None)."
        )


@dataclass(frozen=True, eq=False)
class ReplacePattern(Edit):
    """Have attention follow a given pattern: its logarithm goes in place of the scores.

    Args:
        name: A `hook_attn_scores`, or a glob, shorthand or list of them.
        pattern: `[query key]`, `[head query key]` or with a batch axis; an
            axis of length 1 serves all, queries of cross-attention and the
            encoder included. Rows over keys must sum to 1. The decoder's
            self-attention takes a square causal one, of which a run uses as
            many tokens as it has.
        head: Heads to replace; None is all. A head axis of the pattern counts
            all heads of the layer.
    """

    name: NamesFilter
    pattern: Float[Tensor, "*batch query key"]
    head: Heads = None

    def hooks(self, model: HookedWhisper) -> list[HookPair]:
        names = score_names(model, self.name)
        pattern = self._checked()
        for name in names:
            self._check_shape(model, name, pattern)
        logarithm = pattern.float().log()

        def function(scores: Tensor, hook: HookPoint) -> Tensor:
            name = hook.name or ""
            heads = head_mask(self.head, scores.shape[1], name).to(scores.device)
            new = _rows_of_pass(logarithm, scores, name, first_pos(name))
            return torch.where(heads, new.to(scores), scores)

        return [(name, function) for name in names]

    def _checked(self) -> Float[Tensor, "batch head query key"]:
        """The pattern with all its axes."""
        pattern = self.pattern
        if pattern.ndim not in (2, 3, 4):
            raise AlignmentError(
                f"the pattern has shape {tuple(pattern.shape)}; it must be [query key], "
                "[head query key] or [batch head query key]."
            )
        away = (pattern.double().sum(dim=-1) - 1).abs()
        allowed = 1e-3 if pattern.dtype == torch.float32 else 1e-2
        if not bool((pattern >= 0).all() & (away <= allowed).all()):
            raise InterventionError(
                f"a row of the pattern sums to 1 ± {float(away.max()):.3g}, and its least value "
                f"is {float(pattern.min()):.3g}. Rows must be probabilities: divide by "
                "pattern.sum(-1, keepdim=True)."
            )
        return pattern[(None,) * (4 - pattern.ndim)]

    def _check_shape(self, model: HookedWhisper, name: str, pattern: Tensor) -> None:
        _, n_head, n_query, n_key = model.axis_sizes(name)
        head_mask(self.head, n_head or 0, name)
        _, got_head, got_query, got_key = pattern.shape
        fits = got_head in (1, n_head)
        fits = fits and got_key == (got_query if n_key is None else n_key)
        fits = fits and (n_query is None or got_query in (1, n_query))
        if not fits:
            needed = [n_head, n_query or "query", n_key or "key, as many as queries"]
            raise AlignmentError(
                f"the pattern has shape {tuple(self.pattern.shape)}; at {name!r} it must be "
                f"[{', '.join(map(str, needed))}], or have 1 for all heads."
            )
        if n_key is None and bool((pattern.triu(1) > 0).any()):
            raise InterventionError(
                f"the pattern for {name!r} attends to later tokens, which the decoder never "
                "sees. Make it causal: pattern.tril(), with rows that sum to 1."
            )


def score_names(model: HookedWhisper, names_filter: NamesFilter) -> list[str]:
    """The attention scores that a filter means."""
    names = model.hook_names(names_filter)
    for name in names:
        if not name.endswith(f".{_SCORES}"):
            raise SiteError(
                f"{name!r} is no place to edit attention. Give its scores, such as "
                f"'decoder.blocks.*.cross_attn.{_SCORES}'."
            )
    return names


def head_mask(heads: Heads, n_heads: int, name: str) -> Bool[Tensor, "head_or_1 1 1"]:
    """True at the heads that are meant; None is all, in one place."""
    if heads is None:
        return torch.ones(1, 1, 1, dtype=torch.bool)
    mask = torch.zeros(n_heads, 1, 1, dtype=torch.bool)
    mask[list(places_on(heads, n_heads, "head", name))] = True
    return mask


def _rows_of_pass(
    whole: Float[Tensor, "rows head query key"], scores: Tensor, name: str, start: int
) -> Tensor:
    """What a pass's scores have of those of a pass over all positions."""
    n_rows, _, n_query, n_key = scores.shape
    whole = whole[rows_for(n_rows, len(whole), name)]
    is_causal = name.startswith("decoder") and "cross" not in name
    if is_causal or whole.shape[2] > 1:
        if start + n_query > whole.shape[2]:
            raise AlignmentError(
                f"the pattern for {name!r} has {whole.shape[2]} queries, and this run "
                f"{start + n_query} so far. Give it more rows"
                + ("." if is_causal else ", or one for all queries.")
            )
        whole = whole[:, :, start : start + n_query]
    return whole[..., :n_key]


def _mark(wanted: Positions | None, n: int, what: str, name: str) -> Bool[Tensor, " n"]:
    """True at the wanted places among `n`; places beyond are not there yet."""
    mask = torch.zeros(n, dtype=torch.bool)
    places = places_on(slice(None) if wanted is None else wanted, n, what, name, may_be_absent=True)
    mask[[place for place in places if 0 <= place < n]] = True
    return mask


def _counts_from_end(wanted: Positions | None) -> bool:
    if isinstance(wanted, slice):
        return any(each is not None and each < 0 for each in (wanted.start, wanted.stop))
    places = [wanted] if isinstance(wanted, int) else wanted or []
    return any(each < 0 for each in places)
