"""Sparse autoencoders: trained, loaded, saved and judged; `model.add_sae` splices them in."""

from hooked_whisper.sae.architectures import ARCHITECTURES, make_sae
from hooked_whisper.sae.architectures.batch_topk import (
    BatchTopKConfig,
    BatchTopKSAE,
    MatryoshkaConfig,
    MatryoshkaSAE,
)
from hooked_whisper.sae.architectures.gated import GatedConfig, GatedSAE
from hooked_whisper.sae.architectures.jumprelu import JumpReLUConfig, JumpReLUSAE
from hooked_whisper.sae.architectures.relu import ReLUConfig, ReLUSAE
from hooked_whisper.sae.architectures.topk import TopKConfig, TopKSAE
from hooked_whisper.sae.architectures.transcoder import (
    SkipTranscoder,
    SkipTranscoderConfig,
    Transcoder,
    TranscoderConfig,
)
from hooked_whisper.sae.base import SAE, SAEConfig
from hooked_whisper.sae.evaluation import (
    Clip,
    Reconstruction,
    SAEEvaluation,
    decoder_cosines,
    decoder_stability,
    evaluate_sae,
    evaluate_saes,
    frame_labels,
    judge_reconstruction,
    latents_by_speech,
    recording_labels,
    selectivity,
    top_clips,
    word_labels,
)
from hooked_whisper.sae.io import load_sae, load_suite, save_sae
from hooked_whisper.sae.training import (
    ActivationSource,
    MemoryActivations,
    ModelActivations,
    TensorBoardLog,
    TrainingConfig,
    TrainingLog,
    WandbLog,
    train_sae,
    train_saes,
)

__all__ = [
    "SAE",
    "SAEConfig",
    "ARCHITECTURES",
    "make_sae",
    "ReLUConfig",
    "ReLUSAE",
    "TopKConfig",
    "TopKSAE",
    "BatchTopKConfig",
    "BatchTopKSAE",
    "MatryoshkaConfig",
    "MatryoshkaSAE",
    "JumpReLUConfig",
    "JumpReLUSAE",
    "GatedConfig",
    "GatedSAE",
    "TranscoderConfig",
    "Transcoder",
    "SkipTranscoderConfig",
    "SkipTranscoder",
    "load_sae",
    "load_suite",
    "save_sae",
    "TrainingConfig",
    "train_sae",
    "train_saes",
    "ActivationSource",
    "MemoryActivations",
    "ModelActivations",
    "TrainingLog",
    "TensorBoardLog",
    "WandbLog",
    "SAEEvaluation",
    "Reconstruction",
    "evaluate_sae",
    "evaluate_saes",
    "judge_reconstruction",
    "decoder_cosines",
    "decoder_stability",
    "latents_by_speech",
    "frame_labels",
    "word_labels",
    "recording_labels",
    "selectivity",
    "Clip",
    "top_clips",
]
