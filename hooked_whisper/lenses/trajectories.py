"""Token trajectories: how the probability of chosen tokens grows through the decoder."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hooked_whisper.errors import InputError, TokenError
from hooked_whisper.lenses.cached_run import Positions, Source, token_id, token_texts
from hooked_whisper.lenses.logit_lens import StreamSite, open_streams, stream_sites
from hooked_whisper.lenses.readout import Readout, TokenStatistics
from hooked_whisper.model.whisper import HookedWhisper

if TYPE_CHECKING:
    import matplotlib.figure
    import pandas


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

        n_sites, n_rows = self.logprobs.shape[:2]
        index = pd.MultiIndex.from_product(
            [range(n_sites), range(n_rows), self.positions, range(len(self.tokens))],
            names=["place", "batch", "pos", "token"],
        )
        frame = index.to_frame(index=False)
        places = frame.pop("place")
        frame.insert(0, "site", [self.sites[place].label for place in places])
        frame.insert(1, "layer", [self.sites[place].layer for place in places])
        frame.insert(2, "stream", [self.sites[place].stream for place in places])
        frame["token_id"] = [self.tokens[each] for each in frame["token"]]
        frame["token"] = [self.texts[each] for each in frame["token"]]
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
            title: Drawn above.

        Raises:
            InputError: Another `over`.
        """
        from hooked_whisper.figures.lenses import plot_trajectories

        if over not in ("sites", "positions"):
            raise InputError(f'over is {over!r}; it can be "sites" or "positions".')
        if over == "sites":
            labels, probs = [site.label for site in self.sites], self.probs[:, row, place]
        else:
            labels, probs = [str(pos) for pos in self.positions], self.probs[place, row]
        x_label = "residual stream" if over == "sites" else "decoder position"
        return plot_trajectories(probs, labels, self.texts, x_label=x_label, title=title)


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
        model: The model.
        source: A recording, to be run with `tokens`; or what was cached by
            `run_with_cache` or `generate(..., return_cache=True)`.
        tokens: The decoder's tokens, the start sequence included.
        of: The tokens to follow, as ids or as texts of one token (`" three"`).
        sites: See `logit_lens`.
        pos: Decoder positions; None takes all, of a decoding those that decoded a token.

    Raises:
        TokenError: No tokens to follow, or what is no single token.
        InputError: No such stream or position, or no tokens.
        HookNameError: A cache that lacks one of the streams.
    """
    wanted = [of] if isinstance(of, str | int) else list(of)
    if not wanted:
        raise TokenError("of is empty; give the tokens to follow, as ids or texts.")
    ids = [token_id(model, each) for each in wanted]
    places = stream_sites(model, sites)
    run = open_streams(model, source, tokens, places, pos, {})
    asked = torch.tensor(ids, device=model.device).expand(*run.shape, -1)
    readout = Readout.of(model)
    found = [readout.statistics(run.read(site.name), asked, top_k=1) for site in places]
    statistics = TokenStatistics.stack(found)
    texts = tuple(token_texts(model.cfg, torch.tensor(ids)))
    return TokenTrajectories(
        places, run.positions, tuple(ids), texts, statistics.logprobs, statistics.ranks
    )
