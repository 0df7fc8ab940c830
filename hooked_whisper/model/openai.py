"""What openai-whisper's own functions need of a model, so that they run on a HookedWhisper.

`whisper.decode`, `whisper.transcribe` and word timing take a HookedWhisper in
place of openai-whisper's class and give the same results; hooks fire all the
way through.
"""

import base64
import gzip
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hooked_whisper.config import SAMPLE_RATE_HZ, HookedWhisperConfig
from hooked_whisper.hooks.names import NamesFilter
from hooked_whisper.hooks.root import HookedEncoderDecoder
from hooked_whisper.model.generate import GenerateOptions, Generation, TokenRules, generate
from hooked_whisper.model.kv_cache import KVCache
from hooked_whisper.speech.audio import load_audio
from hooked_whisper.speech.mel import Mel
from hooked_whisper.speech.tokens import get_tokenizer

if TYPE_CHECKING:
    from whisper.model import ModelDimensions

if sys.version_info >= (3, 11):
    from typing import Unpack
elif TYPE_CHECKING:
    from typing_extensions import Unpack
else:

    class Unpack:
        """beartype, which tests check annotations with, knows it from Python 3.11 on."""

        def __class_getitem__(cls, options: Any) -> Any:
            return Any


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
    hallucination_silence_threshold: float | int | None
    sample_len: int | None
    best_of: int | None
    beam_size: int | None
    patience: float | int | None
    length_penalty: float | int | None
    fp16: bool


class OpenAIInterface(HookedEncoderDecoder):
    """The attributes and methods of openai-whisper's `Whisper`."""

    cfg: HookedWhisperConfig
    encoder: Any
    decoder: Any
    alignment_heads: Tensor

    @property
    def dims(self) -> "ModelDimensions":
        """The sizes, as openai-whisper writes them."""
        return self.cfg.dims

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """What the weights are kept in."""
        return next(self.parameters()).dtype

    @property
    def is_multilingual(self) -> bool:
        """Whether the vocabulary has language tokens."""
        return self.cfg.is_multilingual

    @property
    def num_languages(self) -> int:
        """Languages in the vocabulary."""
        return self.cfg.n_languages

    def _init_alignment_heads(self, heads: Bool[Tensor, "layer head"] | None = None) -> None:
        """Use the given cross-attention heads for word timing, or the upper half of the layers."""
        if heads is None:
            heads = torch.zeros(
                self.cfg.n_text_layers, self.cfg.n_text_heads, dtype=torch.bool, device="cpu"
            )
            heads[self.cfg.n_text_layers // 2 :] = True
        self.register_buffer("alignment_heads", heads.to_sparse(), persistent=False)

    def set_alignment_heads(self, dump: bytes) -> None:
        """Use the heads of openai-whisper's compressed table for word timing."""
        flat = np.frombuffer(gzip.decompress(base64.b85decode(dump)), dtype=bool).copy()
        heads = torch.from_numpy(flat).reshape(self.cfg.n_text_layers, self.cfg.n_text_heads)
        self._init_alignment_heads(heads.to(self.device))

    def embed_audio(
        self, mel: Mel | Float[Tensor, "batch mel frame"]
    ) -> Float[Tensor, "batch pos d_model"]:
        """The encoder's output, as openai-whisper calls it."""
        return self.encoder(mel)

    def logits(
        self,
        tokens: Int[Tensor, "batch pos"],
        audio_features: Float[Tensor, "audio_batch frame d_model"],
    ) -> Float[Tensor, "batch pos vocab"]:
        """The decoder's logits, as openai-whisper calls them."""
        return self.decoder(tokens, audio_features)

    def install_kv_cache_hooks(self, cache: Any = None) -> tuple[KVCache, list[Any]]:
        """An empty cache to pass to the decoder, and no hooks: this decoder fills it itself."""
        return KVCache(), []

    def detect_language(self, mel: Any, tokenizer: Any = None) -> tuple[Tensor, Any]:
        """The most probable language's token, and all languages' probabilities.

        Source: `whisper.decoding.detect_language`, which this calls.
        """
        from whisper.decoding import detect_language

        tokenizer = tokenizer or get_tokenizer(self.cfg)
        return detect_language(self, mel.values if isinstance(mel, Mel) else mel, tokenizer)

    def decode(self, mel: Any, options: Any = None, **kwargs: Any) -> Any:
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
        from whisper.decoding import DecodingOptions, decode

        get_tokenizer(self.cfg)  # refuses a vocabulary that is not Whisper's
        if options is None:
            options = DecodingOptions(fp16=self.device.type != "cpu")
        return decode(self, mel.values if isinstance(mel, Mel) else mel, options, **kwargs)

    def transcribe(
        self,
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
                `beam_size`, `word_timestamps`, ...

        Returns:
            `text`, `segments` and `language`.

        Raises:
            AudioError: No usable audio; its subclasses say why.
            TokenError: No such language.

        Source: `whisper.transcribe.transcribe`, which this calls.
        """
        from whisper.transcribe import transcribe

        # Refuses a vocabulary that is not Whisper's. English-only models take every language.
        get_tokenizer(self.cfg, kwargs.get("language") if self.is_multilingual else None)
        if rate_hz is None and hasattr(audio, "shape"):
            rate_hz = SAMPLE_RATE_HZ
        samples = load_audio(audio, rate_hz)
        kwargs.setdefault("fp16", self.device.type != "cpu")
        return transcribe(self, samples, **kwargs)

    def generate(
        self,
        mel: Mel | Float[Tensor, "batch mel frame"] | None = None,
        max_new_tokens: int | None = None,
        *,
        encoder_output: Float[Tensor, "batch pos d_model"] | None = None,
        return_cache: bool = False,
        names_filter: NamesFilter = None,
        **options: Unpack[GenerateOptions],
    ) -> Generation:
        """Decode greedily or by sampling, with hooks firing in every step.

        What a hook sees: the encoder runs once. In the first step the decoder
        sees the prompt, in every later step the one new token, so that `pos`
        and `query` have length 1 while `key` holds every position so far.
        Keys and values of cross-attention are computed, and their hooks fire,
        in the first step only. An edit to `hook_k` or `hook_v` stays in the
        cache for later steps.

        Args:
            mel: Recordings side by side.
            max_new_tokens: Tokens to decode at most; None is half the decoder's positions.
            encoder_output: Used instead of running the encoder on a mel.
            return_cache: Also return the activations of all steps, joined: the
                cache of one pass over the same tokens.
            names_filter: Which activations to return.
            options: Fields of openai-whisper's `DecodingOptions`. Here
                `language="en"`, `without_timestamps=True` and
                `suppress_blank=False` unless told otherwise; `temperature`
                above 0 samples from torch's generator.

        Raises:
            InputError: An unknown option, or one of beam search, which `decode` has;
                neither or both of mel and encoder output.
            HookNameError: A name that matches nothing, or nothing that fires.
        """
        return generate(
            self,
            mel,
            max_new_tokens,
            encoder_output=encoder_output,
            return_cache=return_cache,
            names_filter=names_filter,
            **options,
        )
