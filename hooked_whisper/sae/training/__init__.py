"""Training sparse autoencoders on activations as they come."""

from hooked_whisper.sae.training.config import TrainingConfig
from hooked_whisper.sae.training.logs import TensorBoardLog, TrainingLog, WandbLog
from hooked_whisper.sae.training.model_source import ModelActivations
from hooked_whisper.sae.training.optim import geometric_median
from hooked_whisper.sae.training.sources import ActivationSource, MemoryActivations
from hooked_whisper.sae.training.train import train_sae, train_saes

__all__ = [
    "ActivationSource",
    "MemoryActivations",
    "ModelActivations",
    "TensorBoardLog",
    "TrainingConfig",
    "TrainingLog",
    "WandbLog",
    "geometric_median",
    "train_sae",
    "train_saes",
]
