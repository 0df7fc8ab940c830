"""Judging sparse autoencoders: by what they give back, by what they do to speech, by labels."""

from hooked_whisper.moved import moved_names

_NAMES = """
    Clip Reconstruction SAEEvaluation decoder_cosines decoder_stability evaluate_sae evaluate_saes
    frame_labels judge_reconstruction latents_by_speech recording_labels selectivity top_clips
    word_labels
"""
__getattr__ = moved_names(__name__, dict.fromkeys(_NAMES.split(), "sae"))
