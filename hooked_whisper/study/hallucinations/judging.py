"""Rates of what was written, word error rates, and which edits pass."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hooked_whisper.analysis import bootstrap_weights, share_interval
from hooked_whisper.speech import comparable, n_wrong_words
from hooked_whisper.study.hallucinations.candidates import NOTHING, Candidate
from hooked_whisper.study.hallucinations.clips import Clip
from hooked_whisper.study.hallucinations.listening import Listener, Written


@dataclass(frozen=True)
class Limits:
    """What an edit must keep to.

    Args:
        rate: The greatest share of sounds that may get a text.
        wer_rise: By how much the word error rate may rise.
        n_random: Controls of each edit.
    """

    rate: float
    wer_rise: float
    n_random: int


def share(values: Sequence[bool]) -> float:
    """Of values that are true; NaN of none."""
    return sum(values) / len(values) if values else float("nan")


def rates(written: Sequence[Written]) -> dict[str, Any]:
    """How many get a text, with and without gates, and how many texts loop."""
    texts = [bool(each.text) for each in written]
    return {
        "n": len(written),
        "raw": share(texts),
        "raw_interval": list(share_interval(sum(texts), len(texts))),
        "words": share([any(map(str.isalnum, each.text)) for each in written]),
        "gated": share([bool(each.text) and not each.gate for each in written]),
        "openai": share([bool(each.text) and not each.openai_gate for each in written]),
        "loops": share([each.is_loop for each in written]),
    }


@dataclass(frozen=True, eq=False)
class WordErrors:
    """Wrong words of each clip, and how many are said in it."""

    wrong: Float[Tensor, " clip"]
    said: Float[Tensor, " clip"]

    @property
    def rate(self) -> float:
        """The word error rate over all."""
        return float(self.wrong.sum() / self.said.sum())

    def rise(self, before: "WordErrors") -> tuple[float, list[float]]:
        """How much higher it is than before, with the bootstrap's 95 % over clips."""
        weights = bootstrap_weights(len(self.said))
        more = (weights @ (self.wrong - before.wrong)) / (weights @ self.said)
        bounds = torch.quantile(more, torch.tensor([0.025, 0.975]))
        return self.rate - before.rate, bounds.tolist()


def word_errors(clips: Sequence[Clip], written: Sequence[Written]) -> WordErrors:
    """Of speech, by the package's own normalizer."""
    wrong, said = [], []
    for clip, each in zip(clips, written, strict=True):
        pair = comparable(clip.window.text or "", each.text, "auto", each.language)
        wrong.append(n_wrong_words(*pair))
        said.append(len(pair[0].split()))
    return WordErrors(torch.tensor(wrong).float(), torch.tensor(said).float())


@dataclass(eq=False)
class Judge:
    """Listens to both kinds of clips with an edit, and says whether it passes.

    Args:
        listener: Who listens.
        limits: What passes.
        bar: Moves with every clip.
    """

    listener: Listener
    limits: Limits
    bar: Any

    def listen(self, clips: Sequence[Clip], candidate: Candidate = NOTHING) -> list[Written]:
        """What is written of each clip."""
        return self.listener.listen(clips, candidate, self.bar)

    def outcome(
        self, candidate: Candidate, sounds: Sequence[Clip], speech: Sequence[Clip]
    ) -> dict[str, Any]:
        """What an edit does to some sounds and to some speech."""
        before, after = rates(self.listen(sounds)), rates(self.listen(sounds, candidate))
        own = word_errors(speech, self.listen(speech))
        edited = word_errors(speech, self.listen(speech, candidate))
        rise, interval = edited.rise(own)
        return {
            "n": after["n"],
            "rate_before": before["raw"],
            "rate": after["raw"],
            "rate_interval": after["raw_interval"],
            "gated": after["gated"],
            "loops": after["loops"],
            "n_speech": len(speech),
            "wer_before": own.rate,
            "wer": edited.rate,
            "wer_rise": rise,
            "wer_rise_interval": interval,
            "passes": after["raw"] <= self.limits.rate
            and after["raw"] < before["raw"]
            and rise <= self.limits.wer_rise,
        }

    def controls(
        self, candidate: Candidate, sounds: Sequence[Clip], speech: Sequence[Clip]
    ) -> dict[str, Any]:
        """The same edit at random, by the same test; speech only where the rate would pass."""
        found, passed = [], []
        for seed in range(self.limits.n_random):
            control = candidate.at_random(seed)
            rate = rates(self.listen(sounds, control))["raw"]
            found.append(rate)
            passed.append(
                rate <= self.limits.rate and self.outcome(control, sounds, speech)["passes"]
            )
        return {"random_rates": found, "random_passes": sum(passed)}


def auroc(positive: Float[Tensor, " one"], negative: Float[Tensor, " other"]) -> float:
    """The chance that one of the first is greater than one of the others."""
    higher = (positive[:, None] > negative[None]).double()
    return float((higher + 0.5 * (positive[:, None] == negative[None])).mean())
