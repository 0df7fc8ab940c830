"""How a Whisper comes to its weights: by name, by path, or from a model in memory."""

import os
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from hooked_whisper.config import HookedWhisperConfig
from hooked_whisper.device import as_device
from hooked_whisper.model import adapters, processing
from hooked_whisper.model.calls import WhisperBase
from hooked_whisper.model.layers import sinusoids
from hooked_whisper.weights.huggingface import from_hf_state
from hooked_whisper.weights.loaded import LoadedWeights, assign_weights
from hooked_whisper.weights.openai import from_openai_state
from hooked_whisper.weights.registry import load_weights

if TYPE_CHECKING:
    from typing_extensions import Self


class LoadedWhisper(WhisperBase):
    """A Whisper that can be made from trained weights."""

    def __init__(self, cfg: HookedWhisperConfig) -> None:
        super().__init__()
        self.cfg = cfg

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str],
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | Literal["auto"] = torch.float32,
        download_root: str | os.PathLike[str] | None = None,
        d_vocab: int | None = None,
        alignment_heads: Any = None,
        base: str | os.PathLike[str] | None = None,
        fold_ln: bool = False,
        center_writing_weights: bool = False,
        center_unembed: bool = False,
    ) -> "Self":
        """A Whisper with trained weights, in eval mode.

        Args:
            source: An OpenAI release (`"tiny"`, `"tiny.en"`, ... `"turbo"`),
                `"digits"` (the small model that comes with the package), the
                path of an OpenAI `.pt` checkpoint, a Hugging Face folder or
                hub id (`"openai/whisper-tiny"`), a folder of CTranslate2 or MLX,
                a file of whisper.cpp, a folder that `save_pretrained` wrote, or an
                adapter's folder or hub id (peft's LoRA), whose base is loaded with it.
            device: Where the weights go; None is CUDA where there is one.
            dtype: What the weights are kept in; `"auto"`: as stored, integers in float32.
            download_root: Where OpenAI's releases are kept; None is openai-whisper's own folder.
            d_vocab: How many tokens to keep, from the first; None is all. For fine-tunes with
                added tokens, whose number means another vocabulary: 51864 is English only.
            alignment_heads: What `set_alignment_heads` takes; None is what the source names, or
                the heads of the release that it is.
            base: Of an adapter: a source too, instead of the one that its config names.
            fold_ln, center_writing_weights, center_unembed: See `process_weights_`.

        Raises:
            DeviceError: A device that is not there; nothing was loaded.
            SourceError: The source leads to no weights.
            DownloadError: The download failed.
            CheckpointError: The file cannot be read as plain tensors, or holds NaN or infinity.
            ArchitectureError: The weights of something else, or of another vocabulary than
                their number of tokens means.
            WeightNameError: Missing or unexpected tensors.
            WeightShapeError: A tensor of the wrong shape.
        """
        device = as_device(device)
        loaded = load_weights(source, download_root, d_vocab, alignment_heads, base)
        model = cls._from_loaded(loaded, device, dtype)
        if fold_ln or center_writing_weights or center_unembed:
            processing.process_weights_(model, fold_ln, center_writing_weights, center_unembed)
        return model

    @classmethod
    def from_openai(
        cls,
        model: nn.Module,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> "Self":
        """A copy of an openai-whisper model in memory, where and in what that is unless told.

        It may be inside of DistributedDataParallel or torch.compile.
        """
        loaded, first = from_openai_state(model), next(model.parameters())
        device = first.device if device is None else as_device(device)
        return cls._from_loaded(loaded, device, dtype or first.dtype)

    @classmethod
    def from_hf(
        cls,
        model: nn.Module,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        d_vocab: int | None = None,
    ) -> "Self":
        """A copy of a transformers Whisper in memory, where and in what that is unless told.

        It may be inside of DistributedDataParallel or torch.compile, and a `PeftModel`,
        whose adapter comes along (`model.adapter`). `d_vocab` is `from_pretrained`'s.
        """
        loaded, first = from_hf_state(model, d_vocab), next(model.parameters())
        device = first.device if device is None else as_device(device)
        return cls._from_loaded(loaded, device, dtype or first.dtype)

    @classmethod
    def _from_loaded(
        cls, loaded: LoadedWeights, device: torch.device, dtype: torch.dtype | Literal["auto"]
    ) -> "Self":
        with torch.device("meta"):
            model = cls(loaded.cfg)
        if loaded.omitted:
            positions = sinusoids(loaded.cfg.n_audio_ctx, loaded.cfg.d_model)
            model.encoder.positional_embedding = positions
        assign_weights(model, loaded, device=device, dtype=dtype)
        own, heads = model.alignment_heads, loaded.alignment_heads
        model.alignment_heads = (own if heads is None else heads.to_sparse()).to(device)
        if loaded.adapter is not None:
            adapters.attach_adapter(model, loaded.adapter)
        return model.eval()
