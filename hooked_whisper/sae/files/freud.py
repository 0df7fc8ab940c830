"""Checkpoints of FREUD and of Reid 2023, from which FREUD's L1 autoencoder comes.

    TopK    f = topk(relu(encoder.weight (x - b_dec) + encoder.bias)),   f W_dec + b_dec
    L1      f = relu(x D + encoder_bias),                                D f

with D = decoder.weight [d_in, d_sae], whose columns are scaled to length 1
before each use: what the file holds may be an optimiser step away from that.

Source: ksadov/FREUD, `src/models/`; er537/whisper_interpretability, `sparse_coding/train`.
"""

from typing import Any

import torch

from hooked_whisper.sae.files.build import Found
from hooked_whisper.sae.files.dictionary_learning import which_k
from hooked_whisper.sae.files.sites import hook_of_module
from hooked_whisper.sae.files.tensors import Contents

TOPK = {
    "encoder.weight": "d_sae d_in",
    "encoder.bias": "d_sae",
    "W_dec": "d_sae d_in",
    "b_dec": "d_in",
}
L1 = {"decoder.weight": "d_in d_sae", "encoder_bias": "d_sae"}


def read_freud_topk(contents: Contents, k: int | None) -> Found:
    """FREUD's TopK autoencoder; k stands in its hyperparameters."""
    cfg = _cfg(contents, TOPK)
    hparams = _hparams(contents)
    said = [_part(hparams, part).get("k") for part in ("topk_params", "autoencoder_config")]
    cfg["k"] = which_k(contents, k, *said, hparams.get("k"))
    tensors = contents.tensors
    return Found(
        contents.path,
        {**cfg, "architecture": "topk", "apply_b_dec_to_input": True},
        {
            "W_enc": tensors["encoder.weight"].T,
            "b_enc": tensors["encoder.bias"],
            "W_dec": tensors["W_dec"],
            "b_dec": tensors["b_dec"],
        },
    )


def read_tied(contents: Contents) -> Found:
    """FREUD's L1 autoencoder, and Reid's: tied weights, no bias of the decoder."""
    cfg = _cfg(contents, L1)
    stored = contents.tensors["decoder.weight"]
    columns = torch.nn.functional.normalize(stored.float(), dim=0).to(stored.dtype)
    return Found(
        contents.path,
        {**cfg, "architecture": "standard", "tied": True, "apply_b_dec_to_input": False},
        {
            "W_dec": columns.T,
            "b_enc": contents.tensors["encoder_bias"],
            "b_dec": columns.new_zeros(cfg["d_in"]),
        },
    )


def _cfg(contents: Contents, layout: dict[str, str]) -> dict[str, Any]:
    sizes = contents.sizes(layout)
    hparams = _hparams(contents)
    layer = hparams.get("layer_name", _part(hparams, "whisper_config").get("layer_name"))
    hparams = {key: value for key, value in hparams.items() if _is_plain(value)}
    metadata = {"source": "FREUD", "hparams": hparams} if hparams else {"source": "Reid 2023"}
    return {
        "d_in": sizes["d_in"],
        "d_sae": sizes["d_sae"],
        "hook_name": hook_of_module(layer),
        "metadata": metadata,
    }


def _hparams(contents: Contents) -> dict[str, Any]:
    return _part(contents.around, "hparams")


def _part(values: dict[str, Any], name: str) -> dict[str, Any]:
    part = values.get(name)
    return part if isinstance(part, dict) else {}


def _is_plain(value: Any) -> bool:
    """Whether JSON has such a value, all the way down."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(each) for key, each in value.items())
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    if type(value) is float:
        return value == value and abs(value) != float("inf")
    return value is None or type(value) in (str, int, bool)
