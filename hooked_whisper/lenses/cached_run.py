"""What a lens looks at: a run of the model, the positions in it, and the tokens asked about."""

from collections.abc import Iterable, Sequence
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
from hooked_whisper.speech.tokens import check_tokens, has_tokenizer, to_str_tokens

Source = WhisperCache | Generation | Mel | Tensor
"""A run that was cached, a decoding that was cached, or a recording to run with tokens."""
Positions = int | slice | Sequence[int]
Tokens = int | str | Tensor
"""One token for all positions, by id or text, or a tensor that broadcasts to `[batch pos]`."""


@dataclass(frozen=True, eq=False)
class CachedRun:
    """The activations of a run, and the positions in it that are looked at.

    Args:
        cache: Activations, with a batch axis.
        n_rows: Rows of the batch.
        positions: Decoder positions, from 0.
        targets: The tokens asked about: those given, or else those that a decoding decoded.
        versus: The tokens to compare them with.
    """

    cache: WhisperCache
    n_rows: int
    positions: tuple[int, ...]
    targets: Int[Tensor, "batch pos"] | None
    versus: Int[Tensor, "batch pos"] | None

    def read(self, key: Any) -> Float[Tensor, "batch pos ..."]:
        """An activation `[batch pos ...]` at the positions."""
        return self.cache[key][:, list(self.positions)]

    def targets_or_likeliest(self, model: HookedWhisper) -> Int[Tensor, "batch pos"]:
        """The targets; without any the model's own likeliest tokens, by its last stream."""
        if self.targets is not None:
            return self.targets
        return Readout.of(model).likeliest(self.read(last_stream(model)))


def open_run(
    model: HookedWhisper,
    source: Source,
    tokens: Tensor | None,
    names: Sequence[str],
    pos: Positions | None,
    targets: Tokens | None = None,
    versus: Tokens | None = None,
    **run_options: Any,
) -> CachedRun:
    """The activations that are needed, from a cache or by running the model once.

    Everything is checked before anything is run. Without `pos` all positions are looked at, of a
    decoding those that decoded a token; the options are `run_with_cache`'s.
    """
    cache = None
    if isinstance(source, WhisperCache | Generation):
        if tokens is not None:
            raise InputError("tokens are given with a cached run, which has its own. Leave them.")
        cache = _cache_of(source, names)
        n_rows, n_pos = cache[names[0]].shape[:2]
    elif tokens is None:
        raise InputError("a recording needs the decoder's tokens: model.to_tokens(text).")
    else:
        check_tokens(tokens, model.cfg.d_vocab, model.cfg.n_text_ctx)
        n_rows, n_pos = tokens.shape
    if pos is None and isinstance(source, Generation):
        pos = slice(source.n_prompt - 1, None)
    positions = choose_positions(pos, n_pos)
    shape = n_rows, len(positions)
    target_grid = None if targets is None else token_grid(model, targets, shape, "targets")
    versus_grid = None if versus is None else token_grid(model, versus, shape, "versus")
    if target_grid is None and isinstance(source, Generation):
        target_grid = source.tokens[:, [place + 1 for place in positions]]
    if cache is None:
        recording: Any = source
        with torch.no_grad():
            _, cache = model.run_with_cache(
                recording, tokens, names_filter=list(names), **run_options
            )
    return CachedRun(cache, n_rows, positions, target_grid, versus_grid)


def _cache_of(source: WhisperCache | Generation, names: Sequence[str]) -> WhisperCache:
    """A run's activations of these names, with a batch axis."""
    cache = source.cache if isinstance(source, Generation) else source
    if cache is None:
        raise CacheError("the decoding has no cache. Call model.generate(..., return_cache=True).")
    for name in names:
        if name not in cache:
            raise HookNameError(
                f"the cache lacks {name!r}, which this lens needs. Give the recording and tokens "
                "instead, or cache it: model.run_with_cache(mel, tokens)."
            )
    cache = cache.subset(list(names))
    if "pos" not in cache.axes(names[0]):
        raise CacheError(
            f"{names[0]!r} was cached at one position, without its axis. Cache it with a list: "
            "pos_slice=[3]."
        )
    if cache.has_batch_dim:
        return cache
    tensors = {name: cache[name][None] for name in cache}
    axes = {name: ("batch", *cache.axes(name)) for name in cache}
    n_layers = {"decoder": cache.n_layers("decoder"), "encoder": cache.n_layers("encoder")}
    return WhisperCache(tensors, axes, cache.n_frames, n_layers)


def last_stream(model: HookedWhisper) -> str:
    """The hook of the decoder's last residual stream."""
    return f"decoder.blocks.{model.cfg.n_text_layers - 1}.hook_resid_post"


def choose_positions(pos: Positions | None, n: int) -> tuple[int, ...]:
    """Positions counted from 0, of `n`.

    >>> choose_positions([-1, 0], 4)
    (3, 0)
    """
    if pos is None or (isinstance(pos, slice) and pos.step != 0):
        chosen = range(n)[pos or slice(None)]
        if not chosen:
            raise InputError(f"pos is {pos!r}, which chooses none of the {n} decoder positions.")
        return tuple(chosen)
    wanted: list[Any] = list(pos) if isinstance(pos, Iterable) else [pos]
    if not wanted or not all(isinstance(place, int) and -n <= place < n for place in wanted):
        raise InputError(f"pos is {pos!r}; the run has decoder positions 0 to {n - 1}.")
    return tuple(place % n for place in wanted)


def token_id(model: HookedWhisper, token: Any) -> int:
    """The id of one token, given by its id or its text."""
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
    """One token at each position of each row."""
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
    if not has_tokenizer(cfg):
        return [str(token) for token in ids]
    distinct = sorted(set(ids))
    texts = dict(zip(distinct, to_str_tokens(distinct, cfg), strict=True))
    return [texts[token] for token in ids]
