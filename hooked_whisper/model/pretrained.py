"""Trained weights into a model, out of it, and rewritten in place."""

import os
from typing import TypeVar

import torch
from torch import nn

from hooked_whisper.device import as_device
from hooked_whisper.model.openai import OpenAIInterface
from hooked_whisper.model.processing import process_weights
from hooked_whisper.weights.huggingface import from_hf_state
from hooked_whisper.weights.loaded import LoadedWeights, assign_weights
from hooked_whisper.weights.native import save_weights
from hooked_whisper.weights.openai import from_openai_state
from hooked_whisper.weights.registry import load_weights

Model = TypeVar("Model", bound="Pretrained")


class Pretrained(OpenAIInterface):
    """Loading, saving and processing weights."""

    @classmethod
    def from_pretrained(
        cls: type[Model],
        source: str | os.PathLike[str],
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        download_root: str | os.PathLike[str] | None = None,
        fold_ln: bool = False,
        center_writing_weights: bool = False,
        center_unembed: bool = False,
    ) -> Model:
        """A Whisper with trained weights, in eval mode.

        Args:
            source: An OpenAI release (`"tiny"`, `"tiny.en"`, ... `"turbo"`),
                `"digits"` (the small model that comes with the package), the
                path of an OpenAI `.pt` checkpoint, a Hugging Face folder or
                hub id (`"openai/whisper-tiny"`), or a folder that
                `save_pretrained` wrote.
            device: Where the weights go; None is CUDA where there is one.
            dtype: What the weights are kept in.
            download_root: Where OpenAI's releases are kept; None is openai-whisper's own folder.
            fold_ln: See `process_weights_`.
            center_writing_weights: See `process_weights_`.
            center_unembed: See `process_weights_`.

        Raises:
            DeviceError: A device that is not there; nothing was loaded.
            SourceError: The source leads to no weights.
            DownloadError: The download failed.
            CheckpointError: The file cannot be read as plain tensors.
            ArchitectureError: The weights of something else.
            WeightNameError: Missing or unexpected tensors.
            WeightShapeError: A tensor of the wrong shape.
        """
        device = as_device(device)
        model = cls._from_loaded(load_weights(source, download_root=download_root), device, dtype)
        if fold_ln or center_writing_weights or center_unembed:
            model.process_weights_(fold_ln, center_writing_weights, center_unembed)
        return model

    @classmethod
    def from_openai(
        cls: type[Model],
        model: nn.Module,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Model:
        """A copy of an openai-whisper model in memory, where and in what that is unless told."""
        loaded, first = from_openai_state(model), next(model.parameters())
        device = first.device if device is None else as_device(device)
        return cls._from_loaded(loaded, device, dtype or first.dtype)

    @classmethod
    def from_hf(
        cls: type[Model],
        model: nn.Module,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Model:
        """A copy of a transformers Whisper in memory, where and in what that is unless told."""
        loaded, first = from_hf_state(model), next(model.parameters())
        device = first.device if device is None else as_device(device)
        return cls._from_loaded(loaded, device, dtype or first.dtype)

    @classmethod
    def _from_loaded(
        cls: type[Model],
        loaded: LoadedWeights,
        device: torch.device,
        dtype: torch.dtype,
    ) -> Model:
        with torch.device("meta"):
            model = cls(loaded.cfg)
        assign_weights(model, loaded, device=device, dtype=dtype)
        if loaded.alignment_heads is not None:
            model._init_alignment_heads(loaded.alignment_heads)
        model.alignment_heads = model.alignment_heads.to(device)
        return model.eval()

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write the weights as safetensors, with the configuration and the alignment heads."""
        heads = self.alignment_heads.to_dense().cpu()
        save_weights(folder, self.cfg, self.state_dict(), heads)

    def process_weights_(
        self,
        fold_ln: bool = True,
        center_writing_weights: bool = True,
        center_unembed: bool = False,
    ) -> None:
        """Rewrite the weights in place as TransformerLens does; the logits stay as they are.

        The unembedding and the keys' biases become parameters of their own.
        The encoder's last LayerNorm stays as it is, so that its output
        remains Whisper's.

        Args:
            fold_ln: Move each LayerNorm's weight and bias into what reads it.
            center_writing_weights: Take the mean over `d_model` out of
                everything that writes to the residual stream behind the
                embeddings of the convolutions; every LayerNorm removes it anyway.
            center_unembed: Take the mean over `vocab` out of the unembedding.
                This shifts all logits of a position alike: probabilities stay.

        Source: `ProcessWeights` of TransformerLens.
        """
        self.cfg = process_weights(
            self,
            fold_ln=fold_ln,
            center_writing_weights=center_writing_weights,
            center_unembed=center_unembed,
        )
