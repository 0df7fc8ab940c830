"""Statistics of attention and of residual streams: plain tensors in, numbers and tables out."""

from hooked_whisper.analysis.attention import (
    attention_entropy,
    attention_received,
    current_token_score,
    diagonal_half_width,
    diagonal_width,
    mean_distance,
    previous_token_score,
    share_on_padding,
    start_token_score,
)
from hooked_whisper.analysis.attention_timing import (
    TimeAlignment,
    correlation_with_energy,
    expected_seconds,
    frame_energy,
    monotonicity,
    time_alignment,
)
from hooked_whisper.analysis.intervals import bootstrap_weights, share_interval
from hooked_whisper.analysis.massive_activations import SumsByNorm, is_massive
from hooked_whisper.analysis.moments import GrowingHistogram, Histogram, RunningMoments
from hooked_whisper.analysis.residual import (
    OutlierDimensions,
    cosine_by_layer,
    hoyer_sparsity,
    kurtosis,
    norm_by_layer,
    outlier_dimensions,
    participation_ratio,
    residual_histogram,
    residual_norm,
    share_below,
    speech_vectors,
)
from hooked_whisper.analysis.running import HeadMeans, ResidualStatistics
from hooked_whisper.analysis.sparse_probes import SparseProbe, sparse_probe
from hooked_whisper.analysis.tables import HEAD_SCORES, head_table, residual_table
from hooked_whisper.analysis.top_activations import Moment, top_activations
from hooked_whisper.arguments import explain_arguments

__all__ = [
    "attention_entropy",
    "attention_received",
    "current_token_score",
    "diagonal_half_width",
    "diagonal_width",
    "mean_distance",
    "previous_token_score",
    "share_on_padding",
    "start_token_score",
    "TimeAlignment",
    "correlation_with_energy",
    "expected_seconds",
    "frame_energy",
    "monotonicity",
    "time_alignment",
    "bootstrap_weights",
    "share_interval",
    "SumsByNorm",
    "is_massive",
    "GrowingHistogram",
    "Histogram",
    "RunningMoments",
    "HeadMeans",
    "ResidualStatistics",
    "OutlierDimensions",
    "cosine_by_layer",
    "hoyer_sparsity",
    "kurtosis",
    "norm_by_layer",
    "outlier_dimensions",
    "participation_ratio",
    "residual_histogram",
    "residual_norm",
    "share_below",
    "speech_vectors",
    "SparseProbe",
    "sparse_probe",
    "HEAD_SCORES",
    "head_table",
    "residual_table",
    "Moment",
    "top_activations",
]

explain_arguments(globals())
