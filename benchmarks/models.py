"""The contestants, all with the same random weights at the size of a Whisper release."""

from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from hooked_whisper import HookedWhisper, HookedWhisperConfig
from hooked_whisper.weights.rename import huggingface_name, openai_name

PROMPT = ("<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>")


class Models:
    """Each model, made when it is first asked for.

    openai-whisper and this package keep float32 weights and cast them where
    they are used, in whatever dtype the mel comes; transformers keeps its
    weights in the dtype.

    Args:
        size: An OpenAI release, for its sizes only.
        device: Where the models run.
        dtype: What the activations are in.
        seed: Of the weights.
    """

    def __init__(self, size: str, device: torch.device, dtype: torch.dtype, seed: int = 0) -> None:
        self.cfg = HookedWhisperConfig.for_release(size)
        self.device = device
        self.dtype = dtype
        self.seed = seed

    def __getitem__(self, name: str) -> nn.Module:
        return getattr(self, name)

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        """The weights, by the names of this package."""
        torch.manual_seed(self.seed)
        return HookedWhisper(self.cfg).state_dict()

    @cached_property
    def hooked(self) -> HookedWhisper:
        """This package's model."""
        return self._fill(HookedWhisper(self.cfg), self.weights)

    @cached_property
    def openai(self) -> Any:
        """openai-whisper's own class."""
        from whisper.model import Whisper

        return self._fill(Whisper(self.cfg.dims), _rename(self.weights, openai_name))

    @cached_property
    def hf_sdpa(self) -> Any:
        """transformers with fused attention, its default."""
        return self._make_hf("sdpa")

    @cached_property
    def hf_eager(self) -> Any:
        """transformers with explicit attention."""
        return self._make_hf("eager")

    def forget_weights(self) -> None:
        """Free the copy that models were filled from."""
        self.__dict__.pop("weights", None)

    def _make_hf(self, attention: str) -> Any:
        from transformers import WhisperConfig, WhisperForConditionalGeneration, logging

        logging.set_verbosity_error()  # it warns of options that have one reading only
        cfg = self.cfg
        config = WhisperConfig(
            vocab_size=cfg.d_vocab,
            num_mel_bins=cfg.n_mels,
            d_model=cfg.d_model,
            encoder_layers=cfg.n_audio_layers,
            encoder_attention_heads=cfg.n_audio_heads,
            encoder_ffn_dim=cfg.d_mlp,
            decoder_layers=cfg.n_text_layers,
            decoder_attention_heads=cfg.n_text_heads,
            decoder_ffn_dim=cfg.d_mlp,
            max_source_positions=cfg.n_audio_ctx,
            max_target_positions=cfg.n_text_ctx,
        )
        config._attn_implementation = attention
        model = WhisperForConditionalGeneration(config)
        self._fill(model.model, _rename(self.weights, huggingface_name))
        model.tie_weights()
        return model.to(self.device, self.dtype).eval()

    def _fill(self, model: Any, weights: dict[str, Tensor]) -> Any:
        missing, extra = model.load_state_dict(weights, strict=False)
        if extra or set(missing) - {"decoder.mask", "alignment_heads"}:
            raise RuntimeError(f"the weights do not fit: {missing} are missing, {extra} are extra.")
        return model.to(self.device).eval()


def make_inputs(models: Models, n_tokens: int) -> tuple[Tensor, Tensor]:
    """A random log-mel of the full window, and random text tokens behind a usual prompt."""
    cfg, generator = models.cfg, torch.Generator().manual_seed(models.seed + 1)
    mel = torch.randn(1, cfg.n_mels, cfg.n_frames, generator=generator).clamp(-1, 1)
    text = torch.randint(0, 50_000, (1, n_tokens - len(PROMPT)), generator=generator)
    tokens = torch.cat([torch.tensor([prompt_ids(models)]), text], dim=1)
    return mel.to(models.device, models.dtype), tokens.to(models.device)


def tokenizer_of(models: Models) -> Any:
    """openai-whisper's tokenizer for English transcripts."""
    from whisper.tokenizer import get_tokenizer

    return get_tokenizer(
        models.cfg.is_multilingual,
        num_languages=models.cfg.n_languages,
        language="en",
        task="transcribe",
    )


def prompt_ids(models: Models) -> list[int]:
    """The ids of `PROMPT`."""
    special = tokenizer_of(models).special_tokens
    return [special[token] for token in PROMPT]


def _rename(weights: dict[str, Tensor], rename: Any) -> dict[str, Tensor]:
    return {rename(name): value for name, value in weights.items()}
