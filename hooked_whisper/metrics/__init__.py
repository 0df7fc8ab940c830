"""What a run is judged by: its logits at one position or along the text, or what it writes down.

one position    LogitDifference, LogProb, Probability, TokenRank, NoSpeechProb, EndMargin
the whole text  SequenceLogProb, Loss, KLDivergence, ExactSequence
transcripts     WordErrorRate, TokenErrorRate, ExactTranscript, CompressionRatio, Repetition
your own        as_metric, as_transcript_metric
"""

from hooked_whisper.arguments import explain_arguments
from hooked_whisper.metrics.base import Metric, PositionMetric, as_metric
from hooked_whisper.metrics.sequences import (
    ExactSequence,
    KLDivergence,
    Loss,
    SequenceLogProb,
)
from hooked_whisper.metrics.tokens import (
    EndMargin,
    LogitDifference,
    LogProb,
    NoSpeechProb,
    Probability,
    TokenRank,
)
from hooked_whisper.metrics.transcripts import (
    CompressionRatio,
    ExactTranscript,
    Repetition,
    TokenErrorRate,
    TranscriptMetric,
    WordErrorRate,
    as_transcript_metric,
)

__all__ = [
    "CompressionRatio",
    "EndMargin",
    "ExactSequence",
    "ExactTranscript",
    "KLDivergence",
    "LogProb",
    "LogitDifference",
    "Loss",
    "Metric",
    "NoSpeechProb",
    "PositionMetric",
    "Probability",
    "Repetition",
    "SequenceLogProb",
    "TokenErrorRate",
    "TokenRank",
    "TranscriptMetric",
    "WordErrorRate",
    "as_metric",
    "as_transcript_metric",
]

explain_arguments(globals())
