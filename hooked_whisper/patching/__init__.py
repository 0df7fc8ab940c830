"""Many interventions at once: sweeps of patches, paths, gradients, and the search for what can go.

patch at each place           patch_sweep
patch a path between places   path_patch, path_patch_heads (Head, MLPLayer, HeadInput)
the same from gradients       attribution_patch
take away until it breaks     greedy_ablation (head_ablations, layer_ablations)
follow attention through      attention_rollout, gradient_rollout
"""

from hooked_whisper.arguments import explain_arguments
from hooked_whisper.patching.attribution_patching import attribution_patch
from hooked_whisper.patching.path_patching import path_patch, path_patch_heads
from hooked_whisper.patching.paths import Head, HeadInput, MLPLayer, PathEffects
from hooked_whisper.patching.results import SweepResult
from hooked_whisper.patching.rollout import Rollout, attention_rollout, gradient_rollout
from hooked_whisper.patching.search import (
    GreedyAblation,
    Removal,
    greedy_ablation,
    head_ablations,
    layer_ablations,
)
from hooked_whisper.patching.sweep import patch_sweep

__all__ = [
    "GreedyAblation",
    "Head",
    "HeadInput",
    "MLPLayer",
    "PathEffects",
    "Removal",
    "Rollout",
    "SweepResult",
    "attention_rollout",
    "attribution_patch",
    "gradient_rollout",
    "greedy_ablation",
    "head_ablations",
    "layer_ablations",
    "patch_sweep",
    "path_patch",
    "path_patch_heads",
]

explain_arguments(globals())
