"""openai-whisper's own functions on a HookedWhisper: methods that are written beside its class.

`whisper.decode`, `whisper.transcribe` and word timing take a HookedWhisper in
place of openai-whisper's class and give the same results; hooks fire all the
way through.
"""

import warnings
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hooked_whisper.config import SAMPLE_RATE_HZ
from hooked_whisper.errors import InputError, shown
from hooked_whisper.model import own_tokens
from hooked_whisper.model.calls import WhisperBase, check_values
from hooked_whisper.model.generate import TokenRules, Unpack
from hooked_whisper.model.kv_cache import KVCache
from hooked_whisper.model.language import warn_english_only
from hooked_whisper.speech.audio import load_audio
from hooked_whisper.speech.mel import Mel
from hooked_whisper.speech.tokens import get_tokenizer
from hooked_whisper.weights.alignment_heads import as_heads, default_heads


class TranscribeOptions(TokenRules, total=False):
    """What `whisper.transcribe` takes besides the audio."""

    verbose: bool | None
    temperature: float | int | tuple[float | int, ...]
    compression_ratio_threshold: float | int | None
    logprob_threshold: float | int | None
    no_speech_threshold: float | int | None
    condition_on_previous_text: bool
    initial_prompt: str | None
    carry_initial_prompt: bool
    word_timestamps: bool
    prepend_punctuations: str
    append_punctuations: str
    clip_timestamps: str | list[float]
    language: str | None
    hallucination_silence_threshold: float | int | None
    sample_len: int | None
    best_of: int | None
    beam_size: int | None
    patience: float | int | None
    length_penalty: float | int | None
    fp16: bool


def set_alignment_heads(model: WhisperBase, heads: Any) -> None:
    """The heads of cross-attention that word timing reads.

    Args:
        heads: Pairs of layer and head; a boolean mask `[layer head]`; the name of a release,
            whose own these are; openai-whisper's compressed bytes; a JSON file with
            `alignment_heads`; or what `find_alignment_heads` found.

    Raises:
        CheckpointError: Something else, or no head at all.
        WeightShapeError: Heads that this model does not have.
    """
    model.alignment_heads = as_heads(heads, model.cfg).to_sparse().to(model.device)


def has_alignment_heads(model: WhisperBase) -> bool:
    """Whether alignment heads are known; else word timing takes half of all heads."""
    own = model.alignment_heads.to_dense().cpu()
    return not torch.equal(own.bool(), default_heads(model.cfg))


def warn_of_heads(model: WhisperBase) -> None:
    """Say that word times come of heads of which nothing is known."""
    if not has_alignment_heads(model):
        warnings.warn(
            "no alignment heads are known for this model, so that word times come from all heads "
            f"of its decoder layers from {model.cfg.n_text_layers // 2} on, as openai-whisper's "
            "do, and are less exact. find_alignment_heads(model, recordings) finds better ones; "
            "known ones go to model.set_alignment_heads(...) or "
            "from_pretrained(..., alignment_heads=...).",
            stacklevel=3,
        )


def embed_audio(
    model: WhisperBase, mel: Mel | Float[Tensor, "batch mel frame"]
) -> Float[Tensor, "batch pos d_model"]:
    """The encoder's output, as openai-whisper calls it."""
    return model.encoder(mel)


def logits(
    model: WhisperBase,
    tokens: Int[Tensor, "batch pos"],
    audio_features: Float[Tensor, "audio_batch frame d_model"],
) -> Float[Tensor, "batch pos vocab"]:
    """The decoder's logits, as openai-whisper calls them."""
    check_values("audio_features", audio_features)
    return model.decoder(tokens, audio_features)


def install_kv_cache_hooks(model: WhisperBase, cache: Any = None) -> tuple[KVCache, list[Any]]:
    """An empty cache to pass to the decoder, and no hooks: this decoder fills it itself."""
    return KVCache(), []


def detect_language(
    model: WhisperBase, mel: Mel | Tensor, tokenizer: Any = None
) -> tuple[Tensor, Any]:
    """The most probable language's token, and all languages' probabilities.

    Source: `whisper.decoding.detect_language`, which this calls.
    """
    from whisper.decoding import detect_language

    tokenizer = tokenizer or get_tokenizer(model.cfg)
    return detect_language(model, mel.values if isinstance(mel, Mel) else mel, tokenizer)


def decode(model: WhisperBase, mel: Mel | Tensor, options: Any = None, **kwargs: Any) -> Any:
    """Decode windows of 30 s with openai-whisper: greedy, sampled, best-of or beam search.

    Args:
        mel: A `Mel`, a batch, or a single `[mel frame]`.
        options: openai-whisper's `DecodingOptions`; by default in half
            precision on a GPU only.
        kwargs: Options by name.

    Returns:
        A `DecodingResult` for each recording; one alone for `[mel frame]`.

    Source: `whisper.decoding.decode`, which this calls.
    """
    from whisper.decoding import DecodingOptions

    if options is None:
        options = DecodingOptions(fp16=model.device.type != "cpu")
    if not isinstance(options, DecodingOptions):
        raise InputError(f"options are {shown(options)}; give a whisper.DecodingOptions.")
    given = {"language": options.language, "task": options.task, **kwargs}
    _check_prompt(model, given["language"], given["task"])
    own = own_tokens.decode(model.cfg)
    return own(model, mel.values if isinstance(mel, Mel) else mel, options, **kwargs)


def transcribe(
    model: WhisperBase,
    audio: Any,
    *,
    rate_hz: float | int | None = None,
    **kwargs: Unpack[TranscribeOptions],
) -> dict[str, Any]:
    """Transcribe a recording of any length with openai-whisper.

    Args:
        audio: A path, or an array or tensor, by default at 16 kHz. Files
            are read without ffmpeg.
        rate_hz: An array's sampling rate.
        kwargs: Everything that `whisper.transcribe` takes: `language`,
            `beam_size`, `word_timestamps`, ... Of a model with added tokens that
            are text, segments are whole windows: openai-whisper would take them for timestamps.

    Returns:
        `text`, `segments` and `language`; times in seconds as plain floats.

    Raises:
        AudioError: No usable audio; its subclasses say why.
        TokenError: No such language, or a translation by an English-only model.

    Source: `whisper.transcribe.transcribe`, which this calls.
    """
    _check_prompt(model, kwargs.get("language"), kwargs.get("task"))
    if not model.cfg.is_multilingual:
        kwargs["language"] = "en"  # as openai-whisper's command line
    if kwargs.get("word_timestamps"):
        warn_of_heads(model)
    if rate_hz is None and hasattr(audio, "shape"):
        rate_hz = SAMPLE_RATE_HZ
    samples = load_audio(audio, rate_hz)
    kwargs.setdefault("fp16", model.device.type != "cpu")
    if model.cfg.vocabulary is not None and model.cfg.vocabulary.text:
        kwargs["without_timestamps"] = True  # whose tokens they would be taken for
    result = own_tokens.transcribe(model.cfg)(model, samples, **kwargs)
    for segment in result["segments"]:
        for timed in (segment, *segment.get("words", ())):  # NumPy's floats among them
            floats = {key: each for key, each in timed.items() if isinstance(each, float)}
            timed.update({key: float(each) for key, each in floats.items()})
    return result


def _check_prompt(model: WhisperBase, language: Any, task: Any) -> None:
    """Refuse a vocabulary that is not Whisper's, and a language or task that it has no token for.

    An English-only model takes every language for English, and says so.
    """
    get_tokenizer(model.cfg, language if model.cfg.is_multilingual else None, task)
    if not model.cfg.is_multilingual:
        warn_english_only(model.cfg, [language])
