"""What was found out about autoencoders: numbers to keep, to compare and to print."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any

from hooked_whisper.data.windows import SkippedRecording
from hooked_whisper.display import box, count, note, picture, table
from hooked_whisper.errors import InputError
from hooked_whisper.io import as_path, write_json
from hooked_whisper.sae.evaluation.downstream import LossRecovered, TranscriptScores
from hooked_whisper.sae.evaluation.reconstruction import DecoderCosines, Reconstruction

if TYPE_CHECKING:
    import pandas

MOST_OF_THE_VARIANCE = 0.2
"""Massive positions with more of the variance than this make an FVU one of theirs."""

FAR = 1.25
"""An L0 over so many times k, or under k over this, is far from it."""


def is_far(l0: float | None, k: int) -> bool:
    """Whether so many active latents are far from the k that were asked for."""
    return l0 is not None and not k / FAR <= l0 <= k * FAR


@dataclass(frozen=True, eq=False)
class FrameEvaluation:
    """What was found out over one extent: frames of speech, all frames, or a text's tokens.

    Args:
        reconstruction: What it gives back.
        recovered: What the model predicts with it; None of an encoder alone.
        transcripts: What the model writes with it, if that was tried.
        texts: These transcripts.
    """

    reconstruction: Reconstruction
    recovered: LossRecovered | None
    transcripts: TranscriptScores | None
    texts: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Every number, in groups."""
        return {
            "reconstruction": self.reconstruction.to_dict(),
            "recovered": None if self.recovered is None else self.recovered.to_dict(),
            "transcripts": None if self.transcripts is None else self.transcripts.to_dict(),
        }


@dataclass(frozen=True, eq=False)
class SAEEvaluation:
    """Everything that was found out about one autoencoder at one hook.

    Args:
        hook_name: What it reads.
        hook_name_out: What it replaces.
        architecture: What kind it is.
        d_in: Width of what it reads.
        d_sae: Number of latents.
        k: How many of them are active at once by its configuration; None where it has no such
            number.
        n_recordings: On how many recordings it was judged.
        decoder: How alike its directions are.
        extents: What was found by extent: `"speech"` and `"all"` frames in
            the encoder, the tokens of the `"text"` in the decoder.
        transcripts_model: What the model writes without it, if that was tried.
        skipped: Recordings that could not be used: number, name and reason of each.
        n_without_text: Windows of which nobody says what is said. The model's own transcripts
            stood in for cross-entropy and divergence there; word error rates are of the others.
    """

    hook_name: str
    hook_name_out: str
    architecture: str
    d_in: int
    d_sae: int
    n_recordings: int
    decoder: DecoderCosines
    extents: dict[str, FrameEvaluation]
    transcripts_model: tuple[str, ...]
    k: int | None = None
    skipped: tuple[SkippedRecording, ...] = ()
    n_without_text: int = 0

    def __repr__(self) -> str:
        parts = []
        for extent, each in self.extents.items():
            numbers = each.reconstruction
            text = f"{extent}: FVU {numbers.fvu:.4f}"
            if numbers.massive_share:
                text += f" ({numbers.fvu_without_massive:.4f} without massive activations)"
            text += f", L0 {numbers.l0:.1f}{f' of k {self.k}' if self.k else ''}, "
            text += f"dead {numbers.dead_share:.1%}"
            if each.recovered is not None:
                text += f", CE recovered {each.recovered.ce_recovered:.4f}"
            if each.transcripts is not None and each.transcripts.sequence_accuracy is not None:
                text += f", sequences right {each.transcripts.sequence_accuracy:.1%}"
            parts.append(text)
        if self.n_without_text:
            parts.append(f"{count(self.n_without_text, 'window')} without a text")
        return f"SAEEvaluation({self.hook_name}, {'; '.join(parts)})"

    def _repr_html_(self) -> str:
        """All numbers, a column for each extent, and how often latents are active."""
        from hooked_whisper.figures import plot_density

        numbers = {
            extent: {
                name: value
                for group in each.to_dict().values()
                for name, value in (group or {}).items()
                if isinstance(value, int | float) or value is None
            }
            for extent, each in self.extents.items()
        }
        names = dict.fromkeys(name for column in numbers.values() for name in column)
        rows = [[name, *(column.get(name) for column in numbers.values())] for name in names]
        densities = {name: each.reconstruction.density for name, each in self.extents.items()}
        about = f"{self.architecture}, {self.d_sae:,} latents at {self.hook_name}, "
        about += f"judged on {count(self.n_recordings, 'recording')}"
        if self.n_without_text:
            about += f", {count(self.n_without_text, 'window')} without a text"
        drawn = picture(plot_density(densities), "how many latents have which density")
        said = [note(remark) for remark in self.remarks]
        return box(type(self).__name__, about, *said, table(["", *numbers], rows), drawn)

    @property
    def remarks(self) -> list[str]:
        """What is to be known before the numbers are believed, a sentence each."""
        found = []
        for extent, each in self.extents.items():
            numbers = each.reconstruction
            if numbers.massive_variance > MOST_OF_THE_VARIANCE:
                found.append(
                    f"{self.hook_name}, {extent}: {numbers.massive_share:.1%} of the positions are "
                    f"massive and carry {numbers.massive_variance:.0%} of the variance; FVU is "
                    f"{numbers.fvu:.3f}, and {numbers.fvu_without_massive:.3f} of all others."
                )
            if self.k and is_far(numbers.l0, self.k):
                found.append(
                    f"{self.hook_name}, {extent}: {numbers.l0:.1f} latents are active at once, and "
                    f"k is {self.k}."
                )
        return found

    @property
    def speech(self) -> FrameEvaluation:
        """Over the frames of speech; in the decoder, over the tokens of the text."""
        return self._extent("text" if "text" in self.extents else "speech")

    @property
    def all_frames(self) -> FrameEvaluation:
        """Over all frames of the window, padding included."""
        return self._extent("all")

    def _extent(self, name: str) -> FrameEvaluation:
        if name not in self.extents:
            raise InputError(
                f"{self.hook_name!r} was judged over {' and '.join(self.extents)}, not over {name}."
            )
        return self.extents[name]

    def to_dict(self) -> dict[str, Any]:
        """Every number, in groups, in values that JSON has; what has no number is None."""
        plain = ["hook_name", "hook_name_out", "architecture", "d_in", "d_sae", "k"]
        plain += ["n_recordings", "n_without_text"]
        return _finite(
            {
                **{name: getattr(self, name) for name in plain},
                "decoder": self.decoder.to_dict(),
                **{name: each.to_dict() for name, each in self.extents.items()},
            }
        )

    def save(self, path: str | PathLike[str]) -> None:
        """Write everything as JSON, whole or not at all.

        Raises:
            StoreWriteError: The file cannot be written.
        """
        write_json(as_path(path, InputError), self.to_dict())

    def to_dataframe(self) -> "pandas.DataFrame":
        """One row for each extent, with all numbers but the histograms."""
        return evaluation_table([self])


def evaluation_table(
    evaluations: Mapping[str, SAEEvaluation] | Sequence[SAEEvaluation],
) -> "pandas.DataFrame":
    """Autoencoders side by side: a row for each and each extent, a column for each number.

    Args:
        evaluations: What `evaluate_saes` gives, or a list of `evaluate_sae`'s results.
    """
    import pandas

    listed = list(evaluations.values() if isinstance(evaluations, Mapping) else evaluations)
    rows = []
    for evaluation in listed:
        for extent, found in evaluation.extents.items():
            row: dict[str, Any] = {
                "hook_name": evaluation.hook_name,
                "frames": extent,
                "architecture": evaluation.architecture,
                "d_sae": evaluation.d_sae,
                "k": evaluation.k,
            }
            for group in found.to_dict().values():
                row |= {k: v for k, v in (group or {}).items() if not isinstance(v, dict | list)}
            row["mean_nearest_cosine"] = evaluation.decoder.mean_nearest
            rows.append(row)
    return pandas.DataFrame(rows)


def k_of(sae: Any) -> int | None:
    """How many latents are to be active at once; a BatchTopK's that became a JumpReLU too."""
    cfg = getattr(sae, "cfg", None)
    metadata = getattr(cfg, "metadata", None)
    kept = metadata.get("k") if isinstance(metadata, Mapping) else None
    k = getattr(cfg, "k", None) or kept
    return int(k) if isinstance(k, int | float) and k else None


def architecture_of(sae: Any) -> str:
    """What kind it is, as its configuration says; else the name of its class."""
    name = getattr(getattr(sae, "cfg", None), "architecture", None)
    name = name() if callable(name) else name
    return name if isinstance(name, str) else type(sae).__name__


def _finite(value: Any) -> Any:
    """The same without NaN and infinity, which JSON has not."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
