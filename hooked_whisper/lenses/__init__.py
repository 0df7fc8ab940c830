"""What the model would say at every depth, and which parts of it wrote what it says."""

from hooked_whisper.arguments import explain_arguments
from hooked_whisper.lenses.direct_attribution import Attribution, Component, direct_attribution
from hooked_whisper.lenses.encoder_lens import EncoderLens, encoder_lens, encoder_outputs
from hooked_whisper.lenses.logit_lens import (
    LogitLens,
    StreamSite,
    TokenTrajectories,
    logit_lens,
    token_trajectories,
)
from hooked_whisper.lenses.massive_activations import (
    MassiveActivations,
    MassivePosition,
    massive_activations,
)
from hooked_whisper.lenses.massive_removal import MassiveRemoval
from hooked_whisper.lenses.source_attribution import SourceAttribution, source_attribution

__all__ = [
    "LogitLens",
    "StreamSite",
    "logit_lens",
    "EncoderLens",
    "encoder_lens",
    "encoder_outputs",
    "Attribution",
    "Component",
    "direct_attribution",
    "MassiveActivations",
    "MassivePosition",
    "MassiveRemoval",
    "massive_activations",
    "SourceAttribution",
    "source_attribution",
    "TokenTrajectories",
    "token_trajectories",
]

explain_arguments(globals())
