"""Edits of activations, what they are judged by, and the tools that go through many of them.

    what a run is given    Example
    where                  Site
    edits                  Patch, ZeroAblation, MeanAblation, ResampleAblation, SkipLayer,
                           ablate_head_everywhere, RestrictAttention, CutAttention,
                           ReplacePattern, Steer, ProjectOut
    to have them act       Interventions, compare_transcripts
    what a run is worth    LogitDifference, LogProb, ..., WordErrorRate, ..., as_metric
    many at once           patch_sweep, path_patch, path_patch_heads, attribution_patch,
                           greedy_ablation, attention_rollout, gradient_rollout

An edit acts the same in one pass and in every step of decoding.
"""

from hooked_whisper.interventions.ablation import (
    MeanAblation,
    ResampleAblation,
    SkipLayer,
    ZeroAblation,
    ablate_head_everywhere,
)
from hooked_whisper.interventions.attention_edits import (
    CutAttention,
    ReplacePattern,
    RestrictAttention,
)
from hooked_whisper.interventions.attribution_patching import attribution_patch
from hooked_whisper.interventions.edits import Edit, Interventions, Patch, SiteEdit
from hooked_whisper.interventions.examples import Example
from hooked_whisper.interventions.means import mean_activations
from hooked_whisper.interventions.metrics import Metric, PositionMetric, as_metric
from hooked_whisper.interventions.path_effects import PathEffects
from hooked_whisper.interventions.path_patching import path_patch, path_patch_heads
from hooked_whisper.interventions.paths import Head, HeadInput, MLPLayer
from hooked_whisper.interventions.results import SweepResult
from hooked_whisper.interventions.rollout import Rollout, attention_rollout, gradient_rollout
from hooked_whisper.interventions.search import (
    GreedyAblation,
    Removal,
    greedy_ablation,
    head_ablations,
    layer_ablations,
)
from hooked_whisper.interventions.sequence_metrics import (
    ExactSequence,
    KLDivergence,
    Loss,
    SequenceLogProb,
)
from hooked_whisper.interventions.sites import Site
from hooked_whisper.interventions.steering import ProjectOut, Steer, class_mean_difference
from hooked_whisper.interventions.sweep import patch_sweep
from hooked_whisper.interventions.token_metrics import (
    LogitDifference,
    LogProb,
    NoSpeechProb,
    Probability,
    TokenRank,
)
from hooked_whisper.interventions.transcript_metrics import (
    CompressionRatio,
    ExactTranscript,
    Repetition,
    TokenErrorRate,
    TranscriptMetric,
    WordErrorRate,
    as_transcript_metric,
)
from hooked_whisper.interventions.transcripts import TranscriptComparison, compare_transcripts
from hooked_whisper.interventions.values import Add, Clamp, Scale

__all__ = [
    "Example",
    "Site",
    "Edit",
    "SiteEdit",
    "Interventions",
    "Patch",
    "ZeroAblation",
    "MeanAblation",
    "ResampleAblation",
    "SkipLayer",
    "ablate_head_everywhere",
    "mean_activations",
    "CutAttention",
    "ReplacePattern",
    "RestrictAttention",
    "ProjectOut",
    "Add",
    "Clamp",
    "Scale",
    "Steer",
    "class_mean_difference",
    "Metric",
    "PositionMetric",
    "as_metric",
    "LogitDifference",
    "LogProb",
    "Probability",
    "TokenRank",
    "NoSpeechProb",
    "SequenceLogProb",
    "Loss",
    "KLDivergence",
    "ExactSequence",
    "TranscriptMetric",
    "as_transcript_metric",
    "CompressionRatio",
    "ExactTranscript",
    "Repetition",
    "TokenErrorRate",
    "WordErrorRate",
    "TranscriptComparison",
    "compare_transcripts",
    "SweepResult",
    "patch_sweep",
    "Head",
    "HeadInput",
    "MLPLayer",
    "PathEffects",
    "path_patch",
    "path_patch_heads",
    "attribution_patch",
    "Rollout",
    "attention_rollout",
    "gradient_rollout",
    "GreedyAblation",
    "Removal",
    "greedy_ablation",
    "head_ablations",
    "layer_ablations",
]
