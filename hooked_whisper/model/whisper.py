"""HookedWhisper: OpenAI's Whisper with a name for every activation."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from hooked_whisper.config import FLAGS, HookedWhisperConfig, Stack
from hooked_whisper.device import as_device
from hooked_whisper.display import box, facts
from hooked_whisper.errors import ConfigError, InputError, TokenError
from hooked_whisper.hooks.cache import WhisperCache
from hooked_whisper.hooks.collector import Collector, StepCollector
from hooked_whisper.hooks.passes import PassInfo
from hooked_whisper.model.calls import Calls, Output, ReturnType, StopAt, by_name
from hooked_whisper.model.decoder import Decoder
from hooked_whisper.model.encoder import Encoder, MelInput
from hooked_whisper.model.pretrained import Pretrained
from hooked_whisper.speech import tokens as speech_tokens
from hooked_whisper.speech.mel import Mel, to_mel

if TYPE_CHECKING:
    from typing_extensions import Self


_NO_TARGET = -100


@by_name
class HookedWhisper(Pretrained, Calls):
    """Whisper, computed as openai-whisper computes it, with hooks throughout.

    `HookedWhisper(cfg)` has random weights, drawn from torch's generator; see
    `from_pretrained` for real ones. Activations run in the mel's dtype;
    `model.to_mel` gives the model's own.

    Args:
        cfg: Sizes and switches.
    """

    encoder: Encoder
    decoder: Decoder

    def __init__(self, cfg: HookedWhisperConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.encoder = Encoder(cfg)
        self.decoder = Decoder(cfg)
        self._init_alignment_heads()
        self._init_weights()
        self.setup()
        for flag in FLAGS:
            self._set_flag(flag, getattr(cfg, flag))

    def _init_weights(self) -> None:
        """Embeddings as in GPT-2; the rest keeps PyTorch's defaults."""
        if self.decoder.W_E.is_meta:
            return  # weights are on their way; random ones would cost memory here
        nn.init.normal_(self.decoder.token_embedding.weight, std=0.02)
        nn.init.normal_(self.decoder.positional_embedding, std=0.01)

    def __repr__(self) -> str:
        """Sizes, place, hooks and autoencoders; `print(model.encoder)` shows modules."""
        lines = [f"  {name:<8} {value}" for name, value in self._facts().items()]
        return "\n".join([f"{type(self).__name__} {self._headline()}", *lines])

    def _repr_html_(self) -> str:
        """The same as a table."""
        return box(type(self).__name__, self._headline(), facts(self._facts()))

    def _headline(self) -> str:
        n_parameters = sum(each.numel() for each in self.parameters())
        return (
            f"{self.cfg.model_name!r}: {n_parameters:,} parameters, {self.dtype} on {self.device}"
        )

    def _facts(self) -> dict[str, str]:
        cfg = self.cfg
        hooked = [name for name, point in self.hook_dict.items() if point.has_any_hook]
        stacks = {
            stack: f"{cfg.n_layers(stack)} layers x {cfg.n_heads(stack)} heads of "
            f"{cfg.d_head(stack)}, d_model {cfg.d_model}, d_mlp {cfg.d_mlp}"
            for stack in get_args(Stack)
        }
        return {
            "encoder": f"{stacks['encoder']}; {cfg.n_mels} mel bands, {cfg.window_s:g} s",
            "decoder": f"{stacks['decoder']}; {cfg.n_text_ctx} of {cfg.d_vocab:,} tokens",
            "hooks": f"{len(self.hook_names())} points in model.hook_names(); "
            f"hooked: {_some(hooked)}",
            "SAEs": _some(list(self.acts_to_saes)),
            "modules": "print(model.encoder), print(model.decoder)",
        }

    def to(self, *args: Any, **kwargs: Any) -> "Self":
        """Move or convert the model in place; see `torch.nn.Module.to`.

        Raises:
            DeviceError: A device that is not there; nothing has moved.
        """
        for place in (*args[:1], kwargs.get("device")):
            if isinstance(place, (str, int, torch.device)):
                as_device(place)
        return super().to(*args, **kwargs)

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
        self._check_call(mel, tokens, return_type, encoder_output)
        stop = self._check_stop(stop_at_layer, tokens)
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
        stack, start = self._check_layer("layer", layer)
        self._check_stream(stack, resid, tokens, encoder_output)
        if stack == "decoder":
            assert encoder_output is not None
            return self.decoder.run_from(start, resid, encoder_output)
        output = self.encoder.run_from(start, resid, PassInfo(n_positions=n_positions))
        return output if tokens is None else self.decoder(tokens, output)

    def _check_stream(
        self, stack: Stack, resid: Any, tokens: Tensor | None, encoder_output: Tensor | None
    ) -> None:
        """Refuse a residual stream that a stack cannot go on with."""
        longest = self.cfg.n_audio_ctx if stack == "encoder" else self.cfg.n_text_ctx
        shape = tuple(resid.shape) if isinstance(resid, Tensor) else ()
        fits = len(shape) == 3 and shape[2] == self.cfg.d_model and 0 < shape[1] <= longest
        if not fits or (stack == "encoder" and shape[1] != longest):
            raise InputError(
                f"resid is {shape or type(resid).__name__}; the {stack}'s stream is [batch, "
                f"{'' if stack == 'encoder' else 'up to '}{longest}, {self.cfg.d_model}]."
            )
        if resid.device != self.device:
            raise InputError(f"resid is on {resid.device} and the model on {self.device}.")
        if (stack == "decoder") != (encoder_output is not None):
            raise InputError(
                "the decoder attends to the encoder's output; pass encoder_output=model(mel)."
                if stack == "decoder"
                else "encoder_output is given, which the encoder is about to compute; leave it out."
            )
        if stack == "decoder" and tokens is not None:
            raise InputError("tokens are given, but the stream already holds them; leave them out.")
        if tokens is not None:
            speech_tokens.check_tokens(tokens, self.cfg.d_vocab, self.cfg.n_text_ctx)
            self.decoder.check_encoder_output(resid, tokens)
        if encoder_output is not None:
            self.decoder.check_encoder_output(encoder_output, resid[..., 0])

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
        reduction = "none" if per_token else "mean"
        is_text = speech_tokens.is_text(tokens, self.cfg)[:, 1:]
        targets = tokens[:, 1:].long().masked_fill(~is_text, _NO_TARGET)
        return F.cross_entropy(
            logits[:, :-1].transpose(1, 2), targets, ignore_index=_NO_TARGET, reduction=reduction
        )

    def _check_call(
        self, mel: Any, tokens: Any, return_type: Any, encoder_output: Tensor | None
    ) -> None:
        if return_type not in ("logits", "loss", "both", None):
            raise InputError(
                f'return_type is {return_type!r}; it can be "logits", "loss", "both" or None.'
            )
        if (mel is None) == (encoder_output is None):
            what = "neither" if mel is None else "both"
            raise InputError(f"{what} of mel and encoder_output given; pass one of them.")
        if tokens is None and return_type in ("loss", "both"):
            raise InputError(f"return_type {return_type!r} needs tokens: model.to_tokens(text).")
        if tokens is not None:
            speech_tokens.check_tokens(tokens, self.cfg.d_vocab, self.cfg.n_text_ctx)
            if mel is not None and len(mel) != len(tokens):
                raise InputError(
                    f"{len(mel)} recordings and {len(tokens)} rows of tokens do not match. "
                    "Pass one row of tokens for each recording."
                )

    def _check_stop(self, stop_at_layer: Any, tokens: Tensor | None) -> dict[Stack, int]:
        """Where to stop, by stack, with the layer counted from the start."""
        if stop_at_layer is None:
            return {}
        stack, layer = self._check_layer("stop_at_layer", stop_at_layer)
        if stack == "decoder" and tokens is None:
            raise InputError(f"stop_at_layer {stop_at_layer!r} needs tokens for the decoder.")
        return {stack: layer}

    def _check_layer(self, name: str, given: Any) -> tuple[Stack, int]:
        """A place before a block, with the layer counted from the start."""
        pair = given if isinstance(given, Sequence) else ()
        if len(pair) != 2 or pair[0] not in ("encoder", "decoder") or not isinstance(pair[1], int):
            raise InputError(
                f'{name} is {given!r}; it can be (stack, layer), for instance ("encoder", 2).'
            )
        stack, layer = cast(tuple[Stack, int], pair)
        n_layers = self.cfg.n_layers(stack)
        if not -n_layers <= layer <= n_layers:
            raise InputError(
                f"{name} is {given!r}; the {stack} has {n_layers} layers, so that "
                f"it can be {-n_layers} to {n_layers}."
            )
        return stack, layer + n_layers if layer < 0 else layer

    def _make_cache(
        self, collector: Collector | StepCollector, *args: Any, **kwargs: Any
    ) -> WhisperCache:
        cache = super()._make_cache(collector, *args, **kwargs)
        mel = args[0] if args else kwargs.get("mel")
        cache.n_frames = mel.n_frames if isinstance(mel, Mel) else None
        return cache

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

    # Weights by TransformerLens's names

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
        points = [point for point in self.hook_dict.values() if point.flag == flag]
        if not use and (hooked := [point.name for point in points if point.is_hooked]):
            raise ConfigError(
                f"{flag} cannot go off while {hooked[0]!r} has hooks or an SAE, which would never "
                "fire. Call model.reset_hooks() or model.reset_saes() first."
            )
        self.cfg = replace(self.cfg, **cast(dict[str, Any], {flag: use}))
        for point in points:
            point.enabled = use
        for block in [*self.encoder.blocks, *self.decoder.blocks]:
            block.declare_axes()


def _some(names: list[str], most: int = 2) -> str:
    """Names on one line, not too many of them."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more if names else "none"
