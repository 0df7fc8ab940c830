"""Adapters as peft makes and writes them, over a small Whisper of transformers."""

import copy
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn


def adapted(base: nn.Module, **options: Any) -> Any:
    """A `PeftModel` over a copy of a model, with other values in everything that it trains."""
    from peft import LoraConfig, get_peft_model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what peft advises on embeddings that are tied
        model = get_peft_model(copy.deepcopy(base), LoraConfig(**options)).eval()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(0.1 * torch.randn(weight.shape, generator=generator))
    return model


def save_adapter(model: Any, folder: Path, safe: bool = True) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that embeddings are saved, and that it is no safetensors
        model.save_pretrained(folder, safe_serialization=safe)
    return folder


def merged(model: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return copy.deepcopy(model).merge_and_unload().eval()
