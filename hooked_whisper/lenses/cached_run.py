"""What a lens looks at: a run of the model, the positions in it, and the tokens asked about."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hooked_whisper.config import HookedWhisperConfig
from hooked_whisper.errors import CacheError, HookNameError, InputError, TokenError
from hooked_whisper.hooks.cache import WhisperCache
from hooked_whisper.lenses.readout import Readout
from hooked_whisper.model.generate import Generation
from hooked_whisper.model.whisper import HookedWhisper
from hooked_whisper.speech.mel import Mel
from hooked_whisper.speech.tokens import D_VOCABS, check_tokens, to_str_tokens

Source = WhisperCache | Generation | Mel | Tensor
"""A run that was cached, a decoding that was cached, or a recording to run with tokens."""
Positions = int | slice | Sequence[int]
Tokens = int | str | Tensor
"""One token for all positions, by id or text, or a tensor that broadcasts to `[batch pos]`."""


@dataclass(frozen=True, eq=False)
class Run:
    """The activations of a run, and the positions in it that are looked at.

    Args:
        cache: Activations, with a batch axis.
        n_rows: Rows of the batch.
        positions: Decoder positions, from 0.
        asked: The tokens asked about, by what they are: for instance `"targets"`.
    """

    cache: WhisperCache
    n_rows: int
    positions: tuple[int, ...]
    asked: dict[str, Int[Tensor, "batch pos"]]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and positions."""
        return self.n_rows, len(self.positions)

    def read(self, key: Any) -> Float[Tensor, "batch pos ..."]:
        """An activation `[batch pos ...]` at the positions."""
        return self.cache[key][:, list(self.positions)]


def open_run(
    model: HookedWhisper,
    source: Source,
    tokens: Tensor | None,
    names: Sequence[str],
    pos: Positions | None,
    asked: Mapping[str, Tokens | None] | None = None,
    **run_options: Any,
) -> Run:
    """The activations that are needed, from a cache or by running the model once.

    Args:
        model: The model.
        source: A cache, a decoding with its cache, or a recording.
        tokens: The decoder's tokens; only with a recording.
        names: The activations.
        pos: Decoder positions; None takes all, of a decoding those that
            decoded a token.
        asked: Tokens asked about. `"targets"` that are None become the
            model's own likeliest tokens, which needs the decoder's last
            stream among the names, or the decoded tokens of a decoding.
        run_options: Passed on when the model is run.

    Raises:
        InputError: Tokens that are missing or too many, or positions that do not exist.
        TokenError: Tokens that do not fit; before anything is run, as all of these.
        CacheError: A cache without its decoder positions, or none at all.
        HookNameError: A cache that lacks an activation.
    """
    asked = asked or {}
    if isinstance(source, WhisperCache | Generation):
        if tokens is not None:
            raise InputError("tokens are given with a cached run, which has its own. Leave them.")
        return _cached_run(model, source, names, pos, asked)
    if tokens is None:
        raise InputError("a recording needs the decoder's tokens: model.to_tokens(text).")
    check_tokens(tokens, model.cfg.d_vocab, model.cfg.n_text_ctx)
    positions = choose_positions(pos, tokens.shape[1])
    grids = _grids(model, asked, (len(tokens), len(positions)))
    with torch.no_grad():
        _, cache = model.run_with_cache(source, tokens, names_filter=list(names), **run_options)
    return _with_targets(model, Run(cache, len(tokens), positions, grids), asked)


def _cached_run(
    model: HookedWhisper,
    source: WhisperCache | Generation,
    names: Sequence[str],
    pos: Positions | None,
    asked: Mapping[str, Tokens | None],
) -> Run:
    cache = source.cache if isinstance(source, Generation) else source
    if cache is None:
        raise CacheError("the decoding has no cache. Call model.generate(..., return_cache=True).")
    for name in names:
        if name not in cache:
            raise HookNameError(
                f"the cache lacks {name!r}, which this lens needs. Give the recording and tokens "
                "instead, or cache it: model.run_with_cache(mel, tokens)."
            )
    cache = _with_batch_axis(cache.subset(list(names)), names[0])
    n_rows, n_pos = cache[names[0]].shape[:2]
    if isinstance(source, WhisperCache):
        positions = choose_positions(pos, n_pos)
        run = Run(cache, n_rows, positions, _grids(model, asked, (n_rows, len(positions))))
        return _with_targets(model, run, asked)
    positions = choose_positions(slice(source.n_prompt - 1, None) if pos is None else pos, n_pos)
    grids = _grids(model, asked, (n_rows, len(positions)))
    decoded = source.tokens[:, [each + 1 for each in positions]]
    return Run(cache, n_rows, positions, {"targets": decoded, **grids})


def _grids(
    model: HookedWhisper, asked: Mapping[str, Tokens | None], shape: tuple[int, int]
) -> dict[str, Tensor]:
    return {
        what: token_grid(model, tokens, shape, what)
        for what, tokens in asked.items()
        if tokens is not None
    }


def _with_targets(model: HookedWhisper, run: Run, asked: Mapping[str, Tokens | None]) -> Run:
    """The run, with the model's own likeliest tokens where no targets were given."""
    if "targets" in asked and "targets" not in run.asked:
        run.asked["targets"] = Readout.of(model).likeliest(run.read(last_stream(model)))
    return run


def last_stream(model: HookedWhisper) -> str:
    """The hook of the decoder's last residual stream."""
    return f"decoder.blocks.{model.cfg.n_text_layers - 1}.hook_resid_post"


def _with_batch_axis(cache: WhisperCache, name: str) -> WhisperCache:
    if "pos" not in cache.axes(name):
        raise CacheError(
            f"{name!r} was cached at one position, without its axis. Cache it with a list: "
            "pos_slice=[3]."
        )
    if cache.has_batch_dim:
        return cache
    tensors = {each: cache[each][None] for each in cache}
    axes = {each: ("batch", *cache.axes(each)) for each in cache}
    n_layers = {"decoder": cache.n_layers("decoder"), "encoder": cache.n_layers("encoder")}
    return WhisperCache(tensors, axes, cache.n_frames, n_layers)


def choose_positions(pos: Positions | None, n: int) -> tuple[int, ...]:
    """Positions counted from 0, of `n`.

    Raises:
        InputError: Positions that do not exist, or none at all.

    >>> choose_positions([-1, 0], 4)
    (3, 0)
    """
    if pos is None or isinstance(pos, slice):
        chosen = range(n)[pos or slice(None)]
        if not chosen:
            raise InputError(f"pos is {pos!r}, which chooses none of the {n} decoder positions.")
        return tuple(chosen)
    wanted = [pos] if isinstance(pos, int) else list(pos)
    if not wanted or not all(isinstance(each, int) and -n <= each < n for each in wanted):
        raise InputError(f"pos is {pos!r}; the run has decoder positions 0 to {n - 1}.")
    return tuple(each % n for each in wanted)


def token_id(model: HookedWhisper, token: Any) -> int:
    """The id of one token, given by its id or its text.

    Raises:
        TokenError: A text of several tokens, or an id out of the vocabulary.
    """
    if isinstance(token, str):
        ids = model.to_tokens(token, prepend_sot=False)[0].tolist()
        if len(ids) != 1:
            pieces = model.to_str_tokens(ids) if ids else []
            raise TokenError(
                f"{token!r} is {len(ids)} tokens {pieces}; one is needed. Most words begin with a "
                f"space: {' ' + token.strip()!r}."
            )
        return int(ids[0])
    if isinstance(token, bool) or not isinstance(token, int):
        raise TokenError(f"{token!r} is no token; an id or the text of one token is.")
    if not 0 <= token < model.cfg.d_vocab:
        raise TokenError(
            f"token {token} is out of the vocabulary: ids go from 0 to {model.cfg.d_vocab - 1}."
        )
    return token


def token_grid(
    model: HookedWhisper, tokens: Tokens, shape: tuple[int, int], what: str
) -> Int[Tensor, "batch pos"]:
    """One token at each position of each row.

    Raises:
        TokenError: Tokens that are none, or of another shape.
    """
    if not isinstance(tokens, Tensor):
        return torch.full(shape, token_id(model, tokens), device=model.device)
    if tokens.is_floating_point() or tokens.dtype == torch.bool:
        raise TokenError(f"{what} have dtype {tokens.dtype}; tokens are torch.int64.")
    try:
        grid = tokens.to(model.device, torch.int64).broadcast_to(shape)
    except RuntimeError as error:
        raise TokenError(
            f"{what} have shape {tuple(tokens.shape)}; the run has {shape[0]} rows and {shape[1]} "
            "positions are looked at. Give one token for each, or choose positions with pos=."
        ) from error
    for bound in torch.aminmax(grid):
        token_id(model, int(bound))
    return grid


def token_texts(cfg: HookedWhisperConfig, tokens: Tensor) -> list[str]:
    """A readable string for each token; its id where the vocabulary is not Whisper's."""
    ids = tokens.flatten().tolist()
    if cfg.d_vocab not in D_VOCABS:
        return [str(each) for each in ids]
    distinct = sorted(set(ids))
    texts = dict(zip(distinct, to_str_tokens(distinct, cfg), strict=True))
    return [texts[each] for each in ids]
