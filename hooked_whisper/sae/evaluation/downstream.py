"""What a spliced autoencoder does to the model: cross-entropy, divergence, transcripts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hooked_whisper.errors import InputError
from hooked_whisper.speech.wer import Normalize, comparable, word_error_rate

KINDS = ("spliced", "zero", "mean")
"""What stands at the hook: the reconstruction, zeros, or the mean activation."""


@dataclass(frozen=True)
class LossRecovered:
    """How well the model predicts a text with the autoencoder spliced in, in nats a token.

    Args:
        n_tokens: Predictions that were judged.
        ce_clean: Cross-entropy of the model as it is.
        ce_spliced: With reconstructions in place of the activations.
        ce_zero: With zeros in place of them.
        ce_mean: With their mean in place of each.
        kl_spliced: Divergence from the model's own predictions, KL(clean || spliced).
        kl_zero: The same with zeros.
        kl_mean: The same with the mean.
    """

    n_tokens: int
    ce_clean: float
    ce_spliced: float
    ce_zero: float
    ce_mean: float
    kl_spliced: float
    kl_zero: float
    kl_mean: float

    @property
    def ce_recovered(self) -> float:
        """Share of the cross-entropy lost by zeros that splicing wins back: 1 is all of it.

        NaN where zeros lose nothing. Above 1 where the spliced model
        predicts better than the clean one, below 0 where worse than zeros.
        """
        return _share(self.ce_zero - self.ce_spliced, self.ce_zero - self.ce_clean)

    @property
    def ce_recovered_mean(self) -> float:
        """The same, compared with the mean in place of zeros."""
        return _share(self.ce_mean - self.ce_spliced, self.ce_mean - self.ce_clean)

    @property
    def kl_recovered(self) -> float:
        """Share of the divergence caused by zeros that splicing does not cause: 1 is all of it."""
        return _share(self.kl_zero - self.kl_spliced, self.kl_zero)

    @property
    def kl_recovered_mean(self) -> float:
        """The same, compared with the mean in place of zeros."""
        return _share(self.kl_mean - self.kl_spliced, self.kl_mean)

    def to_dict(self) -> dict[str, Any]:
        """Every number, the shares too."""
        shares = ("ce_recovered", "ce_recovered_mean", "kl_recovered", "kl_recovered_mean")
        return vars(self) | {name: getattr(self, name) for name in shares}


class RecoveredMeter:
    """Takes the logits of batches; `result()` says what was recovered over all of them."""

    def __init__(self) -> None:
        self._n = 0
        self._ce = dict.fromkeys(("clean", *KINDS), 0.0)
        self._kl = dict.fromkeys(KINDS, 0.0)

    @torch.no_grad()
    def update(
        self,
        clean: Float[Tensor, "batch pos vocab"],
        others: dict[str, Tensor],
        targets: Int[Tensor, "batch pos"],
        mask: Bool[Tensor, "batch pos"],
    ) -> None:
        """Take the logits of one batch, clean and by kind, and which targets count."""
        wanted = targets[mask][:, None]
        expected = clean[mask].double().log_softmax(dim=-1)
        probs = expected.exp()
        self._n += len(wanted)
        self._ce["clean"] -= float(expected.gather(1, wanted).sum())
        for kind in KINDS:
            found = others[kind][mask].double().log_softmax(dim=-1)
            self._ce[kind] -= float(found.gather(1, wanted).sum())
            # A token that the clean model rules out adds nothing, though its logarithm is infinite.
            self._kl[kind] += float((probs * torch.where(probs > 0, expected - found, 0.0)).sum())

    def result(self) -> LossRecovered:
        """The means over all predictions so far."""
        if not self._n:
            raise InputError("no predictions were given; there is nothing to judge.")
        return LossRecovered(
            self._n,
            **{f"ce_{kind}": total / self._n for kind, total in self._ce.items()},
            **{f"kl_{kind}": total / self._n for kind, total in self._kl.items()},
        )


@dataclass(frozen=True)
class TranscriptScores:
    """Free greedy transcripts with the autoencoder spliced in, against those without.

    Words are compared without case and punctuation. What needs to know what
    is true is over the recordings of which that is known; None where it is of none.

    Args:
        n_recordings: How many were transcribed.
        sequence_accuracy_model: Share of recordings whose whole text the model gets right.
        sequence_accuracy: The same with the autoencoder spliced in.
        wer_model: The model's word error rate over all recordings.
        wer: The same with the autoencoder spliced in.
        same_as_model: Share of recordings with the same words spliced in as without.
        wer_to_model: Word error rate with the model's own transcripts as the truth.
    """

    n_recordings: int
    sequence_accuracy_model: float | None
    sequence_accuracy: float | None
    wer_model: float | None
    wer: float | None
    same_as_model: float
    wer_to_model: float

    def to_dict(self) -> dict[str, Any]:
        """Every number."""
        return dict(vars(self))


def transcript_scores(
    spliced: Sequence[str],
    model: Sequence[str],
    texts: Sequence[str | None] | None = None,
    normalize: Normalize = "auto",
    languages: Sequence[str | None] | None = None,
) -> TranscriptScores:
    """Judge transcripts made with an autoencoder spliced in.

    Args:
        spliced: The transcripts.
        model: Those of the model without it.
        texts: What is said; None for those of which it is unknown.
        normalize: What is done to texts before; see `speech.wer.Normalize`.
        languages: What is spoken in each; None is English.

    Raises:
        InputError: Not as many of each.
    """
    lengths = {len(each) for each in (spliced, model, texts) if each is not None}
    if lengths == {0} or len(lengths) != 1:
        raise InputError(
            f"{len(spliced)} transcripts spliced, {len(model)} of the model and "
            f"{len(texts) if texts is not None else 'no'} texts do not match; pass one of each for "
            "each recording."
        )
    spoken = [None] * len(model) if languages is None else list(languages)
    true = [None] * len(model) if texts is None else list(texts)

    def compared(said: Sequence[str | None], written: Sequence[str]) -> tuple[float, float] | None:
        """The share of texts that are right and the word error rate, where something is said."""
        known = [row for row, text in enumerate(said) if text is not None]
        if not known:
            return None
        pairs = [comparable(str(said[row]), written[row], normalize, spoken[row]) for row in known]
        right = sum(one == other for one, other in pairs) / len(pairs)
        words, others = ([pair[i] for pair in pairs] for i in (0, 1))
        return right, word_error_rate(words, others, normalize=False)

    by_model, by_spliced = compared(true, model), compared(true, spliced)
    to_model = compared(model, spliced)
    assert to_model is not None
    return TranscriptScores(
        n_recordings=len(spliced),
        sequence_accuracy_model=by_model and by_model[0],
        sequence_accuracy=by_spliced and by_spliced[0],
        wer_model=by_model and by_model[1],
        wer=by_spliced and by_spliced[1],
        same_as_model=to_model[0],
        wer_to_model=to_model[1],
    )


def _share(part: float, whole: float) -> float:
    return part / whole if whole > 0 else math.nan
