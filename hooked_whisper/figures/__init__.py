"""Pictures from plain tensors; matplotlib is loaded when the first one is drawn.

Every function returns a matplotlib figure, which `figure.savefig("picture.png")` writes, and
raises `InputError` for names that do not match the numbers, for times that are none, and where
there is nothing to draw. A `title` is drawn above.
"""

from hooked_whisper.arguments import explain_arguments
from hooked_whisper.figures.attention import plot_entropy, plot_pattern, plot_patterns
from hooked_whisper.figures.circuits import CircuitEdge, CircuitNode, plot_circuit
from hooked_whisper.figures.lenses import (
    plot_attribution,
    plot_encoder_lens,
    plot_logit_lens,
    plot_sources,
    plot_trajectories,
)
from hooked_whisper.figures.massive import plot_massive_activations
from hooked_whisper.figures.mel import plot_cross_attention, plot_mel
from hooked_whisper.figures.patching import plot_patching, plot_sweep
from hooked_whisper.figures.sae import (
    plot_density,
    plot_latents,
    plot_learning_curve,
    plot_training,
)
from hooked_whisper.figures.statistics import (
    plot_by_layer,
    plot_confusion,
    plot_cosine_matrix,
    plot_head_scores,
    plot_histograms,
    plot_offsets,
    plot_probes,
)

__all__ = [
    "CircuitEdge",
    "CircuitNode",
    "plot_attribution",
    "plot_by_layer",
    "plot_circuit",
    "plot_confusion",
    "plot_cosine_matrix",
    "plot_cross_attention",
    "plot_density",
    "plot_encoder_lens",
    "plot_entropy",
    "plot_head_scores",
    "plot_histograms",
    "plot_latents",
    "plot_learning_curve",
    "plot_logit_lens",
    "plot_massive_activations",
    "plot_mel",
    "plot_offsets",
    "plot_patching",
    "plot_pattern",
    "plot_patterns",
    "plot_probes",
    "plot_sources",
    "plot_sweep",
    "plot_training",
    "plot_trajectories",
]

explain_arguments(globals())
