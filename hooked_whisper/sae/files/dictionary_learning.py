"""State dictionaries of dictionary_learning, and of AudioSAE, which is built on it.

Symbols: E = encoder.weight [d_sae, d_in], D = decoder.weight [d_in, d_sae].

    AutoEncoder             f = relu(E (x - bias) + encoder.bias),          D f + bias
    AutoEncoderTopK         f = topk(relu(E (x - b_dec) + encoder.bias)),   D f + b_dec
    BatchTopKSAE            f = relu(...) where it is over `threshold`, a number
    MatryoshkaBatchTopKSAE  the same with W_enc [d_in, d_sae], W_dec [d_sae, d_in]
    JumpReluAutoEncoder     f = z where z > threshold, z = x W_enc + b_enc: b_dec is not subtracted
    GatedAutoEncoder        as SAELens's gated: gate_bias, mag_bias, r_mag, decoder_bias
    AutoEncoderNew          whisper_sae.py

Source: saprmarks/dictionary_learning, `dictionary.py` and `trainers/`; audiosae/audio-sae.
"""

import re
from typing import Any

from torch import Tensor

from hooked_whisper.errors import SAEFileError
from hooked_whisper.sae.files.build import Found
from hooked_whisper.sae.files.sites import hook_of_audiosae
from hooked_whisper.sae.files.tensors import Contents

LINEAR = {
    "encoder.weight": "d_sae d_in",
    "encoder.bias": "d_sae",
    "decoder.weight": "d_in d_sae",
}
MATRICES = {"W_enc": "d_in d_sae", "b_enc": "d_sae", "W_dec": "d_sae d_in", "b_dec": "d_in"}


def read_autoencoder(contents: Contents) -> Found:
    """`AutoEncoder`: ReLU, one bias before and after."""
    cfg = _cfg(contents, {**LINEAR, "bias": "d_in"}, "AutoEncoder")
    return Found(
        contents.path,
        {**cfg, "architecture": "standard", "apply_b_dec_to_input": True},
        {**_linear(contents), "b_dec": contents.tensors["bias"]},
    )


def read_topk(contents: Contents, k: int | None, kind: str | None) -> Found:
    """`AutoEncoderTopK`, `BatchTopKSAE` and AudioSAE, which have the same tensors.

    `config.json` beside the file says which it is. Without one, a file with a
    threshold that was set is a BatchTopK: its class applies it, TopK's does not.
    """
    cfg = _cfg(contents, {**LINEAR, "b_dec": "d_in"}, "AutoEncoderTopK", "BatchTopKSAE")
    threshold = contents.scalar("threshold")
    is_set = threshold is not None and threshold >= 0
    dict_class = cfg["metadata"].get("dict_class")
    if kind is None and dict_class is not None:
        kind = "batchtopk" if dict_class == "BatchTopKSAE" else "topk"
    if kind is None:
        kind = "batchtopk" if is_set or _audiosae_layer(contents) is not None else "topk"
    tensors = {**_linear(contents), "b_dec": contents.tensors["b_dec"]}
    if kind == "topk":
        cfg["k"] = which_k(contents, k, cfg["metadata"].get("k"))
        return Found(contents.path, {**cfg, "architecture": "topk"}, tensors)
    return _thresholded(contents, cfg, tensors, k)


def read_matryoshka(contents: Contents, k: int | None) -> Found:
    """`MatryoshkaBatchTopKSAE` with all its groups."""
    cfg = _cfg(contents, MATRICES, "MatryoshkaBatchTopKSAE")
    sizes = contents.tensors["group_sizes"]
    if sizes.ndim != 1 or int(sizes.sum()) != cfg["d_sae"]:
        raise SAEFileError(
            f"group_sizes in {contents.path} sum to {int(sizes.sum())}; the autoencoder has "
            f"{cfg['d_sae']} latents."
        )
    cfg["metadata"]["group_sizes"] = [int(size) for size in sizes]
    return _thresholded(contents, cfg, {name: contents.tensors[name] for name in MATRICES}, k)


def read_jumprelu(contents: Contents) -> Found:
    """`JumpReluAutoEncoder`: a threshold for each latent, no bias before."""
    layout = {**MATRICES, "threshold": "d_sae"}
    cfg = _cfg(contents, layout, "JumpReluAutoEncoder")
    return Found(
        contents.path,
        {**cfg, "architecture": "jumprelu", "apply_b_dec_to_input": False},
        {name: contents.tensors[name] for name in layout},
    )


def read_gated(contents: Contents) -> Found:
    """`GatedAutoEncoder`: SAELens's gated autoencoder under other names."""
    names = {"gate_bias": "b_gate", "mag_bias": "b_mag", "r_mag": "r_mag"}
    layout = {**LINEAR, **dict.fromkeys(names, "d_sae"), "decoder_bias": "d_in"}
    cfg = _cfg(contents, layout, "GatedAutoEncoder")
    tensors = {new: contents.tensors[old] for old, new in names.items()}
    return Found(
        contents.path,
        {**cfg, "architecture": "gated", "apply_b_dec_to_input": True},
        {**_linear(contents), **tensors, "b_dec": contents.tensors["decoder_bias"]},
    )


def which_k(contents: Contents, asked: int | None, *others: Any) -> int:
    """How many latents a TopK keeps: from the file, its config or the caller, who must agree.

    Raises:
        SAEFileError: Nobody says it, two disagree, or it is no whole number.
    """
    said = [k for k in (contents.scalar("k"), *others, asked) if k is not None]
    if not said:
        raise SAEFileError(
            f"{contents.path} does not say how many latents it keeps: call load_sae(path, k=...). "
            f"It holds {contents.describe()}."
        )
    if any(type(k) is not int or k != said[0] for k in said):
        raise SAEFileError(
            f"k of {contents.path} is {' and '.join(map(repr, said))}; file, config.json and "
            "load_sae(k=...) must give the same whole number."
        )
    return int(said[0])


def _thresholded(
    contents: Contents, cfg: dict[str, Any], tensors: dict[str, Tensor], k: int | None
) -> Found:
    """BatchTopK at inference: a JumpReLU with the same threshold for each latent."""
    threshold = contents.scalar("threshold")
    if threshold is None:
        raise SAEFileError(
            f"{contents.path} is a BatchTopK without the threshold that it needs to encode one "
            f"vector: it holds {contents.describe()}. load_sae(path, architecture='topk') keeps "
            "the k largest latents of each vector instead."
        )
    said = [each for each in (contents.scalar("k"), cfg["metadata"].get("k"), k) if each]
    if said:
        cfg["metadata"]["k"] = which_k(contents, k, cfg["metadata"].get("k"))
    # A threshold that was never set is -1 there, and lets every positive latent through, as 0 does.
    value = tensors["b_dec"].new_tensor(max(0.0, threshold))
    tensors["threshold"] = value.expand(cfg["d_sae"])
    return Found(contents.path, {**cfg, "architecture": "jumprelu"}, tensors)


def _linear(contents: Contents) -> dict[str, Tensor]:
    tensors = {
        "W_enc": contents.tensors["encoder.weight"].T,
        "W_dec": contents.tensors["decoder.weight"].T,
    }
    if "encoder.bias" in contents.tensors:
        tensors["b_enc"] = contents.tensors["encoder.bias"]
    return tensors


def _cfg(contents: Contents, layout: dict[str, str], *classes: str) -> dict[str, Any]:
    """Sizes, hook name and metadata, after a check against config.json."""
    sizes = contents.sizes(layout)
    trainer = contents.config.get("trainer", contents.config)
    trainer = trainer if isinstance(trainer, dict) else {}
    dict_class = trainer.get("dict_class")
    if dict_class is not None and dict_class not in classes:
        raise SAEFileError(
            f"config.json beside {contents.path} says {dict_class!r}; the tensors are those of "
            f"{' or '.join(classes)}: {contents.describe()}."
        )
    for key, axis in (("activation_dim", "d_in"), ("dict_size", "d_sae")):
        if trainer.get(key) not in (None, sizes[axis]):
            raise SAEFileError(
                f"config.json beside {contents.path} says {key} {trainer[key]!r}; the tensors are "
                f"of {sizes[axis]}: {contents.describe()}."
            )
    metadata = {key: value for key, value in trainer.items() if value is not None}
    metadata["source"] = "dictionary_learning"
    layer = _audiosae_layer(contents)
    if layer is not None:
        metadata |= {"source": "AudioSAE", "layer": layer}
    return {
        "d_in": sizes["d_in"],
        "d_sae": sizes["d_sae"],
        "hook_name": hook_of_audiosae(layer),
        "apply_b_dec_to_input": True,
        "metadata": metadata,
    }


def _audiosae_layer(contents: Contents) -> int | None:
    """The layer, from 1, of a file that lies as AudioSAE's do: `layer_6/ae.pt`."""
    trainer = contents.config.get("trainer", contents.config)
    trainer = trainer if isinstance(trainer, dict) else {}
    folder = re.fullmatch(r"layer_(\d+)", contents.path.absolute().parent.name)
    if folder:
        return int(folder[1])
    is_whisper = "whisper" in str(trainer.get("lm_name", "")).lower()
    layer = trainer.get("layer")
    return layer if is_whisper and type(layer) is int else None
