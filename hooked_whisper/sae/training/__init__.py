"""Training sparse autoencoders on activations as they come."""

from hooked_whisper.moved import moved_names

_NAMES = """
    ActivationSource MemoryActivations ModelActivations TensorBoardLog TrainingConfig TrainingLog
    WandbLog train_sae train_saes
"""
__getattr__ = moved_names(__name__, dict.fromkeys(_NAMES.split(), "sae"))
