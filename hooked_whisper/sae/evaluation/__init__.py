"""Judging sparse autoencoders: by what they give back, by what they do to speech, by labels."""

from hooked_whisper.analysis.selectivity import (
    ActiveLatents,
    Labels,
    LabelSelectivity,
    LatentCollector,
    Selectivity,
    auroc,
    selectivity,
)
from hooked_whisper.sae.evaluation.downstream import (
    Recovered,
    TranscriptScores,
    transcript_scores,
)
from hooked_whisper.sae.evaluation.evaluate import evaluate_sae, evaluate_saes
from hooked_whisper.sae.evaluation.reconstruction import (
    DecoderCosines,
    Reconstruction,
    ReconstructionMeter,
    decoder_cosines,
    judge_reconstruction,
)
from hooked_whisper.sae.evaluation.report import FrameEvaluation, SAEEvaluation, evaluation_table
from hooked_whisper.sae.evaluation.speech_labels import (
    LatentsBySpeech,
    frame_labels,
    label_selectivity,
    latents_by_speech,
    recording_labels,
    word_labels,
)
from hooked_whisper.sae.evaluation.stability import Stability, decoder_stability
from hooked_whisper.sae.evaluation.top_clips import Clip, clips_table, top_clips
from hooked_whisper.speech.wer import word_error_rate

__all__ = [
    "evaluate_sae",
    "evaluate_saes",
    "LatentsBySpeech",
    "frame_labels",
    "label_selectivity",
    "latents_by_speech",
    "recording_labels",
    "word_labels",
    "DecoderCosines",
    "Reconstruction",
    "ReconstructionMeter",
    "decoder_cosines",
    "judge_reconstruction",
    "FrameEvaluation",
    "SAEEvaluation",
    "evaluation_table",
    "ActiveLatents",
    "Labels",
    "LabelSelectivity",
    "LatentCollector",
    "Selectivity",
    "auroc",
    "selectivity",
    "Recovered",
    "TranscriptScores",
    "transcript_scores",
    "word_error_rate",
    "Stability",
    "decoder_stability",
    "Clip",
    "clips_table",
    "top_clips",
]
