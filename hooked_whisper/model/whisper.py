"""HookedWhisper: OpenAI's Whisper with a name for every activation."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hooked_whisper.config import FLAGS, HookedWhisperConfig, Stack
from hooked_whisper.device import as_device
from hooked_whisper.errors import HookNameError, NoDecoderError, TokenError
from hooked_whisper.hooks.names import NamesFilter
from hooked_whisper.hooks.passes import PassInfo
from hooked_whisper.hooks.points import set_enabled
from hooked_whisper.model import adapters, describe, openai_api, processing, saving
from hooked_whisper.model import generate as generation
from hooked_whisper.model.calls import (
    Output,
    ReturnType,
    StopAt,
    by_name,
    check_call,
    check_layer,
    check_stop,
    check_stream,
)
from hooked_whisper.model.decoder import Decoder, NoDecoder
from hooked_whisper.model.encoder import Encoder, MelInput
from hooked_whisper.model.layers import next_token_loss
from hooked_whisper.model.loading import LoadedWhisper
from hooked_whisper.speech import tokens as speech_tokens
from hooked_whisper.speech.mel import Mel, to_mel
from hooked_whisper.weights.alignment_heads import default_heads
from hooked_whisper.weights.loaded import check_dtype

if TYPE_CHECKING:
    from typing_extensions import Self
    from whisper.model import ModelDimensions


@by_name
class HookedWhisper(LoadedWhisper):
    """Whisper, computed as openai-whisper computes it, with hooks throughout.

    `HookedWhisper(cfg)` has random weights, drawn from torch's generator; see
    `from_pretrained` for real ones. Activations run in the mel's dtype;
    `model.to_mel` gives the model's own.

    Names and hooks (`hook_names`, `add_hook`, `hooks`, `run_with_hooks`), caches
    (`run_with_cache`) and autoencoders (`add_sae`, `saes`, `run_with_saes`) are
    `HookedEncoderDecoder`'s.

    Args:
        cfg: Sizes and switches.
    """

    # Making one

    def __init__(self, cfg: HookedWhisperConfig) -> None:
        super().__init__(cfg)
        self.encoder = Encoder(cfg)
        self.decoder = cast(Decoder, Decoder(cfg) if cfg.has_decoder else NoDecoder())
        self.register_buffer("alignment_heads", default_heads(cfg).to_sparse(), persistent=False)
        self.adapter_weights: adapters.AdapterWeights | None = None
        self.setup()
        for flag in FLAGS:
            self._set_flag(flag, getattr(cfg, flag))

    save_pretrained = saving.save_pretrained
    process_weights_ = processing.process_weights_
    adapter = adapters.adapter
    merge_adapter = adapters.merge_adapter

    def to(self, *args: Any, **kwargs: Any) -> "Self":
        """Move or convert the model in place; see `torch.nn.Module.to`.

        Raises:
            DeviceError, ConfigError: A device that is not there, no dtype of weights.
        """
        for given in (*args, *kwargs.values()):
            if isinstance(given, torch.dtype):
                check_dtype(given)
            elif type(given) in (str, int, torch.device):
                as_device(given)
        return super().to(*args, **kwargs)

    def hook_names(self, names_filter: NamesFilter = None) -> list[str]:
        """The names of the hooks that fire, in the model's order, or those that a filter matches.

        Raises:
            HookNameError: Nothing has that name, or matches.
            HookDisabledError: What matches is behind a flag that is off.
            NoDecoderError: It is the decoder's, and the model is an encoder alone.
        """
        try:
            return super().hook_names(names_filter)
        except HookNameError as error:
            if "decoder" in str(names_filter) and not self.cfg.has_decoder:
                raise NoDecoderError from error
            raise

    # What it is

    __repr__ = describe.as_text
    _repr_html_ = describe.as_html

    @property
    def dims(self) -> "ModelDimensions":
        """The sizes, as openai-whisper writes them."""
        return self.cfg.dims

    @property
    def is_multilingual(self) -> bool:
        """Whether the vocabulary has language tokens."""
        return self.cfg.is_multilingual

    @property
    def num_languages(self) -> int:
        """Languages in the vocabulary."""
        return self.cfg.n_languages

    @property
    def W_E(self) -> Float[Tensor, "vocab d_model"]:
        """The token embedding."""
        return self.decoder.W_E

    @property
    def W_U(self) -> Float[Tensor, "d_model vocab"]:
        """The unembedding; a view of the token embedding unless weights were processed."""
        return self.decoder.W_U

    @property
    def b_U(self) -> Float[Tensor, " vocab"]:
        """The unembedding's bias; zeros unless weights were processed."""
        return self.decoder.b_U

    @property
    def W_pos(self) -> Float[Tensor, "pos d_model"]:
        """The decoder's learned positions; the encoder's are `model.encoder.W_pos`."""
        return self.decoder.W_pos

    # Running

    def forward(
        self,
        mel: MelInput | None = None,
        tokens: Int[Tensor, "batch pos"] | None = None,
        return_type: ReturnType = "logits",
        *,
        encoder_output: Float[Tensor, "audio_batch audio_pos d_model"] | None = None,
        stop_at_layer: StopAt = None,
        loss_per_token: bool = False,
    ) -> Any:
        """Logits or loss of tokens given a recording; the encoder's output without tokens.

        Args:
            mel: A log-mel of the model's full window: `model.to_mel(audio)`.
            tokens: Token ids, the start sequence included: `model.to_tokens(text)`.
            return_type: `"logits"`; `"loss"`, the mean cross-entropy of every
                token but the first, in nats; `"both"`; or None for nothing.
            encoder_output: Used instead of running the encoder on a mel.
            stop_at_layer: `("encoder", l)` or `("decoder", l)`: run up to just
                before that block, and return the residual stream there.
                Negative layers count from the end.
            loss_per_token: Keep the loss of each token apart.

        Raises:
            InputError: Neither or both of mel and encoder output, or a bad one.
            TokenError: Bad tokens, or a loss of fewer than two.
        """
        check_call(self.cfg, mel, tokens, return_type, encoder_output)
        stop = check_stop(self.cfg, stop_at_layer, tokens)
        if encoder_output is None:
            encoder_output = self.encoder(mel, stop.get("encoder"))
        if tokens is None or "encoder" in stop:
            return encoder_output
        logits = self.decoder(tokens, encoder_output, stop_at_layer=stop.get("decoder"))
        if return_type == "logits" or "decoder" in stop:
            return logits
        if return_type is None:
            return None
        loss = self.loss(logits, tokens, per_token=loss_per_token)
        return loss if return_type == "loss" else Output(logits, loss)

    def run_from(
        self,
        layer: tuple[Stack, int],
        resid: Float[Tensor, "batch pos d_model"],
        tokens: Int[Tensor, "batch token"] | None = None,
        *,
        encoder_output: Float[Tensor, "audio_batch audio_pos d_model"] | None = None,
        n_positions: Int[Tensor, " recording"] | None = None,
    ) -> Float[Tensor, "rows out_pos vocab_or_d_model"]:
        """Run the rest of the model on a residual stream, as `stop_at_layer` left it or edited.

        Hooks and autoencoders from there on act as in a whole pass.

        Args:
            layer: `("encoder", l)` or `("decoder", l)`: `resid` is the stream
                before that block; the number of layers is behind the last. Negative
                layers count from the end.
            resid: Rows of one recording after the other, in equal groups.
            tokens: From the encoder on: what the decoder reads; None stops at
                the encoder's output.
            encoder_output: In the decoder: what it attends to.
            n_positions: In the encoder: positions of each recording that hold
                sound, for autoencoders which leave padding alone; `mel.n_positions`.

        Returns:
            The logits; without tokens, the encoder's output.

        Raises:
            InputError: No such layer, a stream of another shape or device; an
                encoder output that is missing in the decoder, or given in the encoder.
            TokenError: Bad tokens.

        >>> stream = model(mel, stop_at_layer=("encoder", 2))           # doctest: +SKIP
        >>> logits = model.run_from(("encoder", 2), stream, tokens)     # doctest: +SKIP
        """
        stack, start = check_layer(self.cfg, "layer", layer)
        check_stream(self, stack, resid, tokens, encoder_output)
        if stack == "decoder":
            assert encoder_output is not None
            return self.decoder.run_from(start, resid, encoder_output)
        output = self.encoder.run_from(start, resid, PassInfo(n_positions=n_positions))
        return output if tokens is None else self.decoder(tokens, output)

    def loss(
        self,
        logits: Float[Tensor, "batch pos vocab"],
        tokens: Int[Tensor, "batch pos"],
        per_token: bool = False,
    ) -> Float[Tensor, "*batch_pos"]:
        """Cross-entropy of each token given those before it, in nats.

        Tokens that `to_tokens` filled rows up with are no text, and do not count:
        what stands behind a row's first end-of-text, and that one too where
        another row has none. Their loss is 0.

        Args:
            logits: What the decoder gave for the tokens.
            tokens: What it was given.
            per_token: Keep the loss of each token apart, instead of their mean.

        Raises:
            TokenError: Fewer than two tokens.
        """
        if tokens.shape[1] < 2:
            raise TokenError("the loss of 1 token is asked for; a first token has none before it.")
        return next_token_loss(logits, tokens, speech_tokens.is_text(tokens, self.cfg), per_token)

    # Speech in, text out

    def to_mel(self, audio: Any, *, rate_hz: float | int | None = None, cut: bool = False) -> Mel:
        """The log-mel of recordings, padded to the model's window, with their lengths.

        Args:
            audio: A path, an array or tensor `[sample]` or `[channel sample]`
                with its rate, or a list of any of these (arrays as pairs with their rates).
            rate_hz: Sampling rate of arrays; files have their own.
            cut: Cut what is longer than the window instead of refusing it.

        Raises:
            AudioError: No usable audio; its subclasses say why.
        """
        return to_mel(
            audio,
            n_mels=self.cfg.n_mels,
            n_frames=self.cfg.n_frames,
            rate_hz=rate_hz,
            cut=cut,
            device=self.device,
            dtype=self.dtype,
        )

    def to_tokens(self, text: Any, **options: Any) -> Int[Tensor, "batch pos"]:
        """Tokens of a text or a list of them, start sequence first; see `speech.to_tokens`."""
        return speech_tokens.to_tokens(text, self.cfg, **options).to(self.device)

    def to_string(self, tokens: Any, *, skip_special: bool = True) -> Any:
        """The text of tokens; a list of texts where there is a batch axis."""
        return speech_tokens.to_string(tokens, self.cfg, skip_special=skip_special)

    def to_str_tokens(self, tokens: Any, **options: Any) -> list[str]:
        """One readable string for each token of a text."""
        return speech_tokens.to_str_tokens(tokens, self.cfg, **options)

    generate = generation.generate
    transcribe = openai_api.transcribe
    decode = openai_api.decode
    detect_language = openai_api.detect_language

    # What openai-whisper's functions ask of its own class
    embed_audio = openai_api.embed_audio
    logits = openai_api.logits
    install_kv_cache_hooks = openai_api.install_kv_cache_hooks
    set_alignment_heads = openai_api.set_alignment_heads

    # Flags

    def set_use_attn_result(self, use: bool) -> None:
        """Make `hook_result` fire: what each head writes, `[batch pos head d_model]`."""
        self._set_flag("use_attn_result", use)

    def set_use_split_qkv_input(self, use: bool) -> None:
        """Make `hook_{q,k,v}_input` fire: the stream that each head's q, k and v read."""
        self._set_flag("use_split_qkv_input", use)

    def set_use_attn_in(self, use: bool) -> None:
        """Make `hook_attn_in` fire: the stream that each head reads."""
        self._set_flag("use_attn_in", use)

    def set_use_hook_mlp_in(self, use: bool) -> None:
        """Make `hook_mlp_in` fire: the stream that the MLP reads."""
        self._set_flag("use_hook_mlp_in", use)

    def _set_flag(self, flag: str, use: bool) -> None:
        set_enabled(self.hook_dict.values(), flag, use)
        self.cfg = replace(self.cfg, **cast(dict[str, Any], {flag: use}))
        stacks: list[Any] = [self.encoder, self.decoder] if self.cfg.has_decoder else [self.encoder]
        for block in [block for stack in stacks for block in stack.blocks]:
            block.declare_axes()
