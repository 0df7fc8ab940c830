"""What the decoder would say if it stopped here: the logit lens, and trajectories of tokens."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hooked_whisper.errors import InputError, TokenError, check_index
from hooked_whisper.lenses.cached_run import (
    Positions,
    Source,
    Tokens,
    last_stream,
    open_run,
    token_id,
    token_texts,
)
from hooked_whisper.lenses.readout import Readout, TokenStatistics
from hooked_whisper.model.whisper import HookedWhisper

if TYPE_CHECKING:
    import matplotlib.figure
    import pandas

STREAMS = ("resid_pre", "resid_mid", "resid_mid_cross", "resid_post")
"""The streams of a decoder block: before it, and after each of its three sublayers."""


class StreamSite(NamedTuple):
    """A place of the decoder's residual stream."""

    layer: int
    stream: str

    @property
    def name(self) -> str:
        """Its hook."""
        return f"decoder.blocks.{self.layer}.hook_{self.stream}"

    @property
    def label(self) -> str:
        """A short name: `"2_mid_cross"`, as `accumulated_resid` writes it."""
        return f"{self.layer}_{self.stream.removeprefix('resid_')}"


@dataclass(frozen=True, eq=False)
class LogitLens:
    """What the stream at each site says about the next token.

    Args:
        sites: Places of the stream, from the first layer to the last.
        positions: Decoder positions; at position p the next token is that of p + 1.
        targets: The token that `target_*` are about.
        statistics: The numbers, with axes site, batch, pos.
        streams: The residual streams that they come from.
        readout: What turns a stream into logits.
    """

    sites: tuple[StreamSite, ...]
    positions: tuple[int, ...]
    targets: Int[Tensor, "batch pos"]
    statistics: TokenStatistics
    streams: Float[Tensor, "site batch pos d_model"]
    readout: Readout

    @property
    def top_tokens(self) -> Int[Tensor, "site batch pos top"]:
        """The likeliest tokens, the likeliest first."""
        return self.statistics.top_tokens

    @property
    def top_probs(self) -> Float[Tensor, "site batch pos top"]:
        """Their probabilities."""
        return self.statistics.top_probs

    @property
    def target_logprobs(self) -> Float[Tensor, "site batch pos"]:
        """The target's log-probability, in nats."""
        return self.statistics.logprobs[..., 0]

    @property
    def target_probs(self) -> Float[Tensor, "site batch pos"]:
        """The target's probability."""
        return self.target_logprobs.exp()

    @property
    def target_ranks(self) -> Int[Tensor, "site batch pos"]:
        """How many tokens are likelier than the target; 0 where it is the likeliest."""
        return self.statistics.ranks[..., 0]

    @property
    def labels(self) -> list[str]:
        """A short name for each site."""
        return [site.label for site in self.sites]

    def logits(self, site: int | str | tuple[int, str]) -> Float[Tensor, "batch pos vocab"]:
        """All logits at one site: those of the last `resid_post` are the model's own.

        Args:
            site: Its place among `sites`, its label, or its layer and stream.

        Raises:
            InputError: No such site.
        """
        names: list[Any] = [*self.sites] if isinstance(site, tuple) else self.labels
        if isinstance(site, int) and -len(self.sites) <= site < len(self.sites):
            place = site
        elif site in names:
            place = names.index(site)
        else:
            raise InputError(f"no site {site!r}; this lens has {self.labels}.")
        return self.readout.logits(self.streams[place])

    def to_dataframe(self) -> "pandas.DataFrame":
        """One line for each site, row of the batch and position, with the likeliest token."""
        import pandas as pd

        lines = product(self.sites, range(len(self.targets)), self.positions)
        frame = pd.DataFrame(
            [(site.label, *site, row, pos) for site, row, pos in lines],
            columns=["site", "layer", "stream", "batch", "pos"],
        )
        cfg, targets = self.readout.cfg, self.targets.expand(len(self.sites), -1, -1)
        frame["top"] = token_texts(cfg, self.top_tokens[..., 0])
        frame["top_id"] = self.top_tokens[..., 0].flatten().tolist()
        frame["top_prob"] = self.top_probs[..., 0].flatten().tolist()
        frame["target"] = token_texts(cfg, targets)
        frame["target_id"] = targets.flatten().tolist()
        frame["target_prob"] = self.target_probs.flatten().tolist()
        frame["target_logprob"] = self.target_logprobs.flatten().tolist()
        frame["target_rank"] = self.target_ranks.flatten().tolist()
        return frame

    def plot(self, row: int = 0, title: str = "") -> "matplotlib.figure.Figure":
        """The likeliest token at each site and position, coloured by its probability."""
        from hooked_whisper.figures.lenses import plot_logit_lens

        check_index("row", row, len(self.targets), InputError)
        cfg, tops = self.readout.cfg, self.top_tokens[:, row, :, 0]
        texts = [token_texts(cfg, of_site) for of_site in tops]
        targets = token_texts(cfg, self.targets[row])
        columns = [f"{pos}\n{text}" for pos, text in zip(self.positions, targets, strict=True)]
        return plot_logit_lens(
            self.top_probs[:, row, :, 0], texts, self.labels, columns, title=title
        )


@dataclass(frozen=True, eq=False)
class TokenTrajectories:
    """Where chosen tokens stand at each site and position.

    Args:
        sites: Places of the decoder's stream, from the first layer to the last.
        positions: Decoder positions; of a decoding, one for each step.
        tokens: Ids of the tokens.
        texts: The tokens, readable.
        logprobs: Their log-probabilities, in nats.
        ranks: How many tokens are likelier; 0 is the likeliest.
    """

    sites: tuple[StreamSite, ...]
    positions: tuple[int, ...]
    tokens: tuple[int, ...]
    texts: tuple[str, ...]
    logprobs: Float[Tensor, "site batch pos token"]
    ranks: Int[Tensor, "site batch pos token"]

    @property
    def probs(self) -> Float[Tensor, "site batch pos token"]:
        """Their probabilities."""
        return self.logprobs.exp()

    def to_dataframe(self) -> "pandas.DataFrame":
        """One line for each site, row of the batch, position and token."""
        import pandas as pd

        tokens = list(zip(self.texts, self.tokens, strict=True))
        lines = product(self.sites, range(self.logprobs.shape[1]), self.positions, tokens)
        frame = pd.DataFrame(
            [(site.label, *site, row, pos, *token) for site, row, pos, token in lines],
            columns=["site", "layer", "stream", "batch", "pos", "token", "token_id"],
        )
        frame["prob"] = self.probs.flatten().tolist()
        frame["logprob"] = self.logprobs.flatten().tolist()
        frame["rank"] = self.ranks.flatten().tolist()
        return frame

    def plot(
        self, place: int = -1, row: int = 0, *, over: str = "sites", title: str = ""
    ) -> "matplotlib.figure.Figure":
        """A line for each token, over the sites at one position or over the positions at one site.

        Args:
            place: The position's, or the site's, place among `positions` or `sites`.
            row: Row of the batch.
            over: `"sites"` or `"positions"`.
        """
        from hooked_whisper.figures.lenses import plot_trajectories

        if over not in ("sites", "positions"):
            raise InputError(f'over is {over!r}; it can be "sites" or "positions".')
        n_sites, n_rows, n_positions, _ = self.logprobs.shape
        check_index("row", row, n_rows, InputError)
        check_index("place", place, n_positions if over == "sites" else n_sites, InputError)
        if over == "sites":
            labels, probs = [site.label for site in self.sites], self.probs[:, row, place]
        else:
            labels, probs = [str(pos) for pos in self.positions], self.probs[place, row]
        x_label = "residual stream" if over == "sites" else "decoder position"
        return plot_trajectories(probs, labels, self.texts, x_label=x_label, title=title)


def logit_lens(
    model: HookedWhisper,
    source: Source,
    tokens: Int[Tensor, "batch pos"] | None = None,
    *,
    sites: Sequence[str] | None = None,
    targets: Tokens | None = None,
    pos: Positions | None = None,
    top_k: int = 5,
) -> LogitLens:
    """What the decoder would predict if it stopped early, through its last LayerNorm.

    The vocabulary's logits are computed a few positions at a time and not
    kept; `lens.logits(site)` gives all of one site's. Hooks act on the run,
    not on the reading: those of `decoder.ln_final` and `decoder.hook_logits`
    are left out.

    Args:
        model: The model.
        source: A recording, to be run with `tokens`; or what was cached:
            `run_with_cache`'s cache, or `generate(..., return_cache=True)`,
            whose steps are then the positions.
        tokens: The decoder's tokens, the start sequence included.
        sites: Some of `resid_pre`, `resid_mid`, `resid_mid_cross` and
            `resid_post`, taken of every layer. None takes each stream once:
            `resid_pre` of the first layer, and the others of all layers.
        targets: Tokens to follow: one for all positions, or a tensor that
            broadcasts to `[batch pos]`, for instance the next tokens with
            `targets=tokens[:, 1:], pos=slice(0, -1)`. None is the model's own
            likeliest token; of a decoding, the token that was decoded.
        pos: Decoder positions; None takes all, of a decoding those that decoded a token.
        top_k: How many of the likeliest tokens to keep.

    Raises:
        InputError: No such stream or position, or no tokens.
        TokenError: Targets that do not fit.
        HookNameError: A cache that lacks one of the streams.

    Source: nostalgebraist, "interpreting GPT: the logit lens", 2020.
    """
    chosen = _stream_sites(model, sites)
    model.cfg.need_decoder()
    if type(top_k) is not int or not 1 <= top_k <= model.cfg.d_vocab:
        raise InputError(f"top_k is {top_k}; it can be 1 to {model.cfg.d_vocab}.")
    names = [site.name for site in chosen]
    if targets is None and last_stream(model) not in names:
        names.append(last_stream(model))
    stop = ("decoder", model.cfg.n_text_layers)  # before the logits
    run = open_run(model, source, tokens, names, pos, targets, stop_at_layer=stop)
    readout, followed = Readout.of(model), run.targets_or_likeliest(model)
    streams = torch.stack([run.read(site.name) for site in chosen])
    found = [readout.statistics(stream, followed[..., None], top_k) for stream in streams]
    statistics = TokenStatistics.stack(found)
    return LogitLens(chosen, run.positions, followed, statistics, streams, readout)


def token_trajectories(
    model: HookedWhisper,
    source: Source,
    tokens: Int[Tensor, "batch pos"] | None = None,
    *,
    of: Sequence[int | str],
    sites: Sequence[str] | None = None,
    pos: Positions | None = None,
) -> TokenTrajectories:
    """How likely each of some tokens is, at every site of the stream and every position.

    The same reading as `logit_lens`, which follows one token a position and
    finds the likeliest ones; this follows the same tokens everywhere. Given a
    decoding with its cache, positions are its steps.

    Args:
        model, source, tokens, sites, pos: As in `logit_lens`.
        of: The tokens to follow, as ids or as texts of one token (`" three"`).

    Raises:
        TokenError: No tokens to follow, or what is no single token; the others are `logit_lens`'s.
    """
    wanted = [of] if isinstance(of, str | int) else list(of)
    if not wanted:
        raise TokenError("of is empty; give the tokens to follow, as ids or texts.")
    ids = [token_id(model, token) for token in wanted]
    chosen = _stream_sites(model, sites)
    names, stop = [site.name for site in chosen], ("decoder", model.cfg.n_text_layers)
    run = open_run(model, source, tokens, names, pos, stop_at_layer=stop)
    shape = run.n_rows, len(run.positions), len(ids)
    followed = torch.tensor(ids, device=model.device).expand(shape)
    readout = Readout.of(model)
    found = [readout.statistics(run.read(site.name), followed, top_k=1) for site in chosen]
    statistics = TokenStatistics.stack(found)
    texts = tuple(token_texts(model.cfg, torch.tensor(ids)))
    return TokenTrajectories(
        chosen, run.positions, tuple(ids), texts, statistics.logprobs, statistics.ranks
    )


def _stream_sites(model: HookedWhisper, streams: Sequence[str] | None) -> tuple[StreamSite, ...]:
    """The decoder's streams of these kinds, in the order in which they are computed."""
    layers = range(model.cfg.n_text_layers)
    if streams is None:
        each_once = [StreamSite(layer, stream) for layer in layers for stream in STREAMS[1:]]
        return (StreamSite(0, "resid_pre"), *each_once)
    wanted = list(streams) if isinstance(streams, Iterable) else [streams]
    wanted = [streams] if isinstance(streams, str) else wanted
    if not wanted or any(stream not in STREAMS for stream in wanted):
        raise InputError(f"sites are {streams!r}; they can be some of {', '.join(STREAMS)}.")
    ordered = [stream for stream in STREAMS if stream in wanted]
    return tuple(StreamSite(layer, stream) for layer in layers for stream in ordered)
