"""The public names: one added, renamed or lost here is a change that users see.

A change of these lists belongs into the documentation and the changelog too.
"""

import importlib
import pickle
import types

import pytest

import hooked_whisper
from hooked_whisper import errors

PUBLIC = {
    "Generation",
    "HookPoint",
    "HookedEncoderDecoder",
    "HookedWhisper",
    "HookedWhisperConfig",
    "Mel",
    "Vocabulary",
    "WhisperCache",
    "load_audio",
}

ERRORS = {
    "HookedWhisperError": ("Exception",),
    "ConfigError": ("HookedWhisperError", "ValueError"),
    "DeviceError": ("HookedWhisperError", "ValueError"),
    "HookError": ("HookedWhisperError",),
    "HookNameError": ("HookError", "KeyError"),
    "HookDisabledError": ("HookNameError",),
    "HookResultError": ("HookError", "ValueError"),
    "CacheError": ("HookedWhisperError", "ValueError"),
    "NoDecoderError": ("HookedWhisperError", "ValueError"),
    "InputError": ("HookedWhisperError", "ValueError"),
    "AudioError": ("InputError",),
    "AudioFileError": ("AudioError", "OSError"),
    "AudioRateError": ("AudioError",),
    "AudioLengthError": ("AudioError",),
    "MelError": ("InputError",),
    "LabelError": ("InputError",),
    "TokenError": ("InputError",),
    "ArgumentError": ("InputError", "TypeError"),
    "InterventionError": ("HookedWhisperError", "ValueError"),
    "SiteError": ("InterventionError",),
    "AlignmentError": ("InterventionError",),
    "MetricError": ("InterventionError",),
    "SweepError": ("InterventionError",),
    "SAEError": ("HookedWhisperError",),
    "SAEConfigError": ("SAEError", "ValueError"),
    "SAEFileError": ("SAEError", "ValueError"),
    "SpliceError": ("SAEError", "ValueError"),
    "TrainingError": ("SAEError", "ValueError"),
    "StoreError": ("HookedWhisperError", "ValueError"),
    "StoreMismatchError": ("StoreError",),
    "StoreDamagedError": ("StoreError",),
    "StoreBusyError": ("StoreError", "OSError"),
    "StoreWriteError": ("StoreError", "OSError"),
    "RecordingsError": ("InputError", "StoreError"),
    "ProbeError": ("StoreError",),
    "ReportError": ("HookedWhisperError", "ValueError"),
    "WeightsError": ("HookedWhisperError",),
    "SourceError": ("WeightsError", "ValueError"),
    "DownloadError": ("WeightsError", "OSError"),
    "CheckpointError": ("WeightsError", "ValueError"),
    "ArchitectureError": ("WeightsError", "ValueError"),
    "WeightNameError": ("WeightsError", "KeyError"),
    "WeightShapeError": ("WeightsError", "ValueError"),
}
"""Every error with what it derives from: code that catches the built-in one counts on it."""


ROOMS = {
    "analysis": """
        GrowingHistogram HEAD_SCORES HeadMeans Histogram Moment OutlierDimensions
        ResidualStatistics RunningMoments SparseProbe SumsByNorm TimeAlignment attention_entropy
        attention_received bootstrap_weights
        correlation_with_energy cosine_by_layer current_token_score diagonal_half_width
        diagonal_width expected_seconds frame_energy head_table hoyer_sparsity is_massive kurtosis
        mean_distance monotonicity norm_by_layer outlier_dimensions participation_ratio
        previous_token_score residual_histogram residual_norm residual_table share_below
        share_interval
        share_on_padding sparse_probe speech_vectors start_token_score time_alignment
        top_activations
    """,
    "figures": """
        CircuitEdge CircuitNode plot_attribution plot_by_layer plot_circuit plot_confusion
        plot_cosine_matrix plot_cross_attention plot_density plot_encoder_lens plot_entropy
        plot_head_scores plot_histograms plot_latents plot_learning_curve plot_logit_lens
        plot_massive_activations plot_mel plot_offsets plot_patching plot_pattern plot_patterns
        plot_probes plot_sources plot_sweep plot_training plot_trajectories
    """,
    "data": """
        AlignmentHeads AudioWindow Recording SkippedRecording WindowBatch add_alignments
        align_phones align_words as_recordings each_window find_alignment_heads load_windows
        non_speech_sounds window_batches write_manifest
    """,
    "interventions": """
        Add AlignedWord Clamp CutAttention Edit Example Interventions MeanAblation Patch ProjectOut
        ReplacePattern ResampleAblation RestrictAttention Scale Site SiteEdit SkipLayer Steer
        TranscriptComparison ZeroAblation ablate_head_everywhere class_mean_difference
        compare_transcripts mean_activations
    """,
    "lenses": """
        Attribution Component EncoderLens LogitLens MassiveActivations MassivePosition
        MassiveRemoval SourceAttribution StreamSite
        TokenTrajectories direct_attribution encoder_lens encoder_outputs logit_lens
        massive_activations         source_attribution token_trajectories
    """,
    "metrics": """
        CompressionRatio EndMargin ExactSequence ExactTranscript KLDivergence LogProb
        LogitDifference Loss Metric NoSpeechProb PositionMetric Probability Repetition
        SequenceLogProb TokenErrorRate TokenRank TranscriptMetric WordErrorRate as_metric
        as_transcript_metric
    """,
    "circuits": """
        Circuit CircuitEvaluation CircuitJudgement Edge EdgeGraph EdgeScores EdgeTimes Embedding
        FaithfulnessCurve Latent LatentGraph ReadSite WordPair attribution_graph carried_seconds
        circuit_transcripts draw_circuit edge_times evaluate_circuits faithfulness_curve
        find_circuit find_latent_circuit judge_circuit
        reference_means save_attribution_graph word_pair
    """,
    "patching": """
        GreedyAblation Head HeadInput MLPLayer PathEffects Removal Rollout SweepResult
        attention_rollout attribution_patch gradient_rollout greedy_ablation head_ablations
        layer_ablations patch_sweep path_patch path_patch_heads
    """,
    "reports": """
        AttentionPage CircuitPage FeaturePage attention_page circuit_page feature_page page_styles
        sound_page
    """,
    "store": """
        ActivationDataset ActivationStore Epochs ProbeResult ProbeScore RecordingEntry RowIndex
        harvest model_identity probe verify_store
    """,
    "study": "HallucinationStudy Study hallucination_study study",
    "sae": """
        ARCHITECTURES ActivationSource BatchTopKConfig BatchTopKSAE Clip GatedConfig GatedSAE
        JumpReLUConfig JumpReLUSAE LearningCurve MatryoshkaConfig MatryoshkaSAE MemoryActivations
        ModelActivations ReLUConfig ReLUSAE Reconstruction SAE SAEConfig SAEEvaluation
        LabelReadout SkipTranscoder SkipTranscoderConfig SpliceSite TensorBoardLog TopKConfig
        TopKSAE TrainingConfig TrainingLog Transcoder TranscoderConfig WandbLog best_f1
        decoder_cosines decoder_stability evaluate_sae evaluate_saes frame_labels
        judge_reconstruction latents_by_speech learning_curve
        load_sae load_suite make_sae readout recording_labels save_sae selectivity splice_site
        top_clips train_sae train_saes word_labels
    """,
}
"""The public names of the rooms that users import from."""


@pytest.mark.parametrize("room", ROOMS)
def test_the_names_of_a_room_are_these(room: str) -> None:
    module = importlib.import_module(f"hooked_whisper.{room}")
    assert set(module.__all__) == set(ROOMS[room].split())
    assert [name for name in module.__all__ if not hasattr(module, name)] == []


MOVED = {
    ("harvest", "store"): """
        ActivationDataset ActivationStore ProbeResult ProbeScore RecordingEntry harvest
        probe verify_store
    """,
    ("harvest", "data"): "Recording as_recordings",
    ("pages", "reports"): "AttentionPage FeaturePage attention_page feature_page",
    ("interventions", "metrics"): ROOMS["metrics"].replace("EndMargin", ""),  # a later one
    ("interventions", "patching"): ROOMS["patching"],
    ("sae.evaluation", "sae"): """
        Clip Reconstruction SAEEvaluation decoder_cosines decoder_stability evaluate_sae
        evaluate_saes frame_labels judge_reconstruction latents_by_speech recording_labels
        selectivity top_clips word_labels
    """,
    ("sae.training", "sae"): """
        ActivationSource MemoryActivations ModelActivations TensorBoardLog TrainingConfig
        TrainingLog WandbLog train_sae train_saes
    """,
}
"""Names that were public in one room, and are in another since 0.2."""


@pytest.mark.parametrize(("old", "new"), MOVED)
def test_a_moved_name_works_and_says_where_it_is(old: str, new: str) -> None:
    before = importlib.import_module(f"hooked_whisper.{old}")
    now = importlib.import_module(f"hooked_whisper.{new}")
    for name in MOVED[old, new].split():
        with pytest.warns(DeprecationWarning, match=f"from hooked_whisper.{new} import {name}"):
            assert getattr(before, name) is getattr(now, name)


def test_a_renamed_name_works_and_says_its_new_one() -> None:
    before = importlib.import_module("hooked_whisper.harvest")
    with pytest.warns(DeprecationWarning, match="from hooked_whisper.store import RowIndex"):
        assert before.RowPlaces is importlib.import_module("hooked_whisper.store").RowIndex


def test_a_name_that_never_was_there_is_none() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'patch_sweeps'"):
        importlib.import_module("hooked_whisper.interventions").patch_sweeps  # noqa: B018


def test_the_public_names_are_these() -> None:
    assert set(hooked_whisper.__all__) == PUBLIC


def test_every_public_name_is_there() -> None:
    assert [name for name in hooked_whisper.__all__ if not hasattr(hooked_whisper, name)] == []


def test_the_package_shows_nothing_else() -> None:
    shown = {
        name
        for name, value in vars(hooked_whisper).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    assert shown <= PUBLIC


def test_a_star_import_brings_the_public_names() -> None:
    namespace: dict[str, object] = {}
    exec("from hooked_whisper import *", namespace)
    assert set(namespace) - {"__builtins__"} == PUBLIC


def test_the_errors_are_these() -> None:
    defined = {
        name: tuple(base.__name__ for base in value.__bases__)
        for name, value in vars(errors).items()
        if isinstance(value, type) and value.__module__ == errors.__name__
    }
    assert defined == ERRORS


def test_the_tree_in_the_docstring_names_every_error() -> None:
    drawn = {word for word in (errors.__doc__ or "").split() if word.endswith("Error")}
    assert set(ERRORS) <= drawn


def test_an_error_reads_as_its_sentence() -> None:
    """A KeyError would show the quoted repr of its message."""
    assert str(errors.HookNameError("no hook 'a'.")) == "no hook 'a'."


@pytest.mark.parametrize("room", ROOMS)
def test_other_processes_can_be_given_what_is_public(room: str) -> None:
    """Pickle looks for a function or a class where it was written, and wants the same one."""
    module = importlib.import_module(f"hooked_whisper.{room}")
    for name in module.__all__:
        thing = getattr(module, name)
        if isinstance(thing, types.FunctionType | type):
            assert pickle.loads(pickle.dumps(thing)) is thing
