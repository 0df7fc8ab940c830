"""Edits of activations: where they act, what they do, and runs that have them.

    what a run is given    Example, whose words have their times as AlignedWord
    where                  Site
    edits                  Patch, ZeroAblation, MeanAblation, ResampleAblation, SkipLayer,
                           ablate_head_everywhere, RestrictAttention, CutAttention,
                           ReplacePattern, Steer, ProjectOut, Add, Clamp, Scale
    to have them act       Interventions, compare_transcripts

An edit acts the same in one pass and in every step of decoding. What runs are judged
by is in `hooked_whisper.metrics`; many edits at once are in `hooked_whisper.patching`.
"""

from hooked_whisper.arguments import explain_arguments
from hooked_whisper.interventions.ablation import (
    MeanAblation,
    ResampleAblation,
    SkipLayer,
    ZeroAblation,
    ablate_head_everywhere,
)
from hooked_whisper.interventions.aligned_words import AlignedWord
from hooked_whisper.interventions.attention_edits import (
    CutAttention,
    ReplacePattern,
    RestrictAttention,
)
from hooked_whisper.interventions.edits import (
    Add,
    Clamp,
    Edit,
    Interventions,
    Patch,
    Scale,
    SiteEdit,
)
from hooked_whisper.interventions.examples import Example
from hooked_whisper.interventions.means import mean_activations
from hooked_whisper.interventions.sites import Site
from hooked_whisper.interventions.steering import ProjectOut, Steer, class_mean_difference
from hooked_whisper.interventions.transcripts import TranscriptComparison, compare_transcripts
from hooked_whisper.moved import moved_names

__all__ = [
    "Add",
    "AlignedWord",
    "Clamp",
    "CutAttention",
    "Edit",
    "Example",
    "Interventions",
    "MeanAblation",
    "Patch",
    "ProjectOut",
    "ReplacePattern",
    "ResampleAblation",
    "RestrictAttention",
    "Scale",
    "Site",
    "SiteEdit",
    "SkipLayer",
    "Steer",
    "TranscriptComparison",
    "ZeroAblation",
    "ablate_head_everywhere",
    "class_mean_difference",
    "compare_transcripts",
    "mean_activations",
]

_METRICS = """
    CompressionRatio ExactSequence ExactTranscript KLDivergence LogProb LogitDifference Loss
    Metric NoSpeechProb PositionMetric Probability Repetition SequenceLogProb TokenErrorRate
    TokenRank TranscriptMetric WordErrorRate as_metric as_transcript_metric
"""
_PATCHING = """
    GreedyAblation Head HeadInput MLPLayer PathEffects Removal Rollout SweepResult
    attention_rollout attribution_patch gradient_rollout greedy_ablation head_ablations
    layer_ablations patch_sweep path_patch path_patch_heads
"""
__getattr__ = moved_names(
    __name__,
    dict.fromkeys(_METRICS.split(), "metrics") | dict.fromkeys(_PATCHING.split(), "patching"),
)

explain_arguments(globals())
