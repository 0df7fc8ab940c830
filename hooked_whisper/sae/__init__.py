"""Sparse autoencoders: trained, loaded, saved and judged; `model.add_sae` splices them in."""

from hooked_whisper.analysis.selectivity import selectivity
from hooked_whisper.arguments import explain_arguments
from hooked_whisper.hooks.splice_site import SpliceSite
from hooked_whisper.hooks.splicing import splice_site
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
from hooked_whisper.sae.evaluation.clips import Clip, top_clips
from hooked_whisper.sae.evaluation.evaluate import evaluate_sae, evaluate_saes
from hooked_whisper.sae.evaluation.readout import LabelReadout, best_f1, readout
from hooked_whisper.sae.evaluation.reconstruction import (
    Reconstruction,
    decoder_cosines,
    judge_reconstruction,
)
from hooked_whisper.sae.evaluation.report import SAEEvaluation
from hooked_whisper.sae.evaluation.speech_labels import (
    frame_labels,
    latents_by_speech,
    recording_labels,
    word_labels,
)
from hooked_whisper.sae.evaluation.stability import decoder_stability
from hooked_whisper.sae.io.load import load_sae, load_suite
from hooked_whisper.sae.saving import save_sae
from hooked_whisper.sae.training.config import TrainingConfig
from hooked_whisper.sae.training.curve import LearningCurve, learning_curve
from hooked_whisper.sae.training.logs import TensorBoardLog, TrainingLog, WandbLog
from hooked_whisper.sae.training.model_source import ModelActivations
from hooked_whisper.sae.training.sources import ActivationSource, MemoryActivations
from hooked_whisper.sae.training.train import train_sae, train_saes

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
    "SpliceSite",
    "splice_site",
    "load_sae",
    "load_suite",
    "save_sae",
    "TrainingConfig",
    "train_sae",
    "train_saes",
    "LearningCurve",
    "learning_curve",
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
    "readout",
    "LabelReadout",
    "best_f1",
    "frame_labels",
    "word_labels",
    "recording_labels",
    "selectivity",
    "Clip",
    "top_clips",
]

explain_arguments(globals())
