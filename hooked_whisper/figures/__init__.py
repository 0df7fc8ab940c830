"""Pictures from plain tensors; matplotlib is loaded when the first one is drawn."""

from hooked_whisper.figures.attention import plot_cross_attention
from hooked_whisper.figures.entropy import plot_entropy
from hooked_whisper.figures.latents import plot_latents
from hooked_whisper.figures.lenses import (
    plot_attribution,
    plot_encoder_lens,
    plot_logit_lens,
    plot_sources,
    plot_trajectories,
)
from hooked_whisper.figures.mel import plot_mel
from hooked_whisper.figures.patching import plot_patching
from hooked_whisper.figures.patterns import plot_pattern, plot_patterns
from hooked_whisper.figures.probes import plot_probes
from hooked_whisper.figures.statistics import (
    plot_by_layer,
    plot_cosine_matrix,
    plot_head_scores,
    plot_histograms,
)
from hooked_whisper.figures.sweep import plot_sweep
from hooked_whisper.figures.training import plot_density, plot_training

__all__ = [
    "plot_attribution",
    "plot_by_layer",
    "plot_cosine_matrix",
    "plot_cross_attention",
    "plot_density",
    "plot_encoder_lens",
    "plot_entropy",
    "plot_head_scores",
    "plot_histograms",
    "plot_latents",
    "plot_logit_lens",
    "plot_mel",
    "plot_patching",
    "plot_pattern",
    "plot_patterns",
    "plot_probes",
    "plot_sources",
    "plot_sweep",
    "plot_training",
    "plot_trajectories",
]
