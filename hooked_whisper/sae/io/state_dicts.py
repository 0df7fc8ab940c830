"""State dictionaries of other packages: which tensors each has, and what they mean here.

E = encoder.weight [d_sae, d_in], D = decoder.weight [d_in, d_sae]. dictionary_learning, and
AudioSAE, which is built on it:

    AutoEncoder             f = relu(E (x - bias) + encoder.bias),          D f + bias
    AutoEncoderNew          f = relu(E x + encoder.bias),                   D f + decoder.bias
    AutoEncoderTopK         f = topk(relu(E (x - b_dec) + encoder.bias)),   D f + b_dec
    BatchTopKSAE            f = relu(...) where it is over `threshold`, a number
    MatryoshkaBatchTopKSAE  the same with W_enc [d_in, d_sae], W_dec [d_sae, d_in]
    JumpReluAutoEncoder     f = z where z > threshold, z = x W_enc + b_enc: b_dec is not subtracted
    GatedAutoEncoder        as SAELens's gated: gate_bias, mag_bias, r_mag, decoder_bias

whisper-sae's first version has AutoEncoderNew's tensors and formula. FREUD, and Reid 2023, from
which FREUD's L1 autoencoder comes:

    TopK    f = topk(relu(E (x - b_dec) + encoder.bias)),   f W_dec + b_dec
    L1      f = relu(x D + encoder_bias),                   D f

where the columns of D are scaled to length 1 before each use: what the file holds may be an
optimiser step away from that.

Source: saprmarks/dictionary_learning, `dictionary.py` and `trainers/`; audiosae/audio-sae;
omarkhursheed/whisper-sae, `librispeech_sae_training.py`; ksadov/FREUD, `src/models/`;
er537/whisper_interpretability, `sparse_coding/train`.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hooked_whisper.errors import SAEFileError
from hooked_whisper.sae.io.contents import Contents

LINEAR = {
    "encoder.weight": "d_sae d_in",
    "encoder.bias": "d_sae",
    "decoder.weight": "d_in d_sae",
}
LINEAR_NAMES = {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "decoder.weight"}
MATRICES = {"W_enc": "d_in d_sae", "b_enc": "d_sae", "W_dec": "d_sae d_in", "b_dec": "d_in"}

BLOCK_HOOKS = {
    "": "hook_resid_post",
    ".attn.out": "hook_attn_out",
    ".cross_attn.out": "hook_cross_attn_out",
    ".mlp": "hook_mlp_out",
    ".mlp.2": "hook_mlp_out",
    ".mlp.1": "mlp.hook_post",
    ".mlp.0": "mlp.hook_pre",
}
"""What a module of openai-whisper's blocks puts out, and the hook that sees it."""


@dataclass
class Found:
    """An autoencoder as a reader understood it.

    Args:
        path: Where it was found.
        cfg: `"architecture"` and the fields of its configuration.
        tensors: By the names that this package's class gives them, [d_in, d_sae] for `W_enc`.
        dtype: What its weights are meant to be in; None is the decoder's dtype in the file.
    """

    path: Path
    cfg: dict[str, Any]
    tensors: dict[str, Tensor]
    dtype: torch.dtype | None = None


# dictionary_learning, AudioSAE, whisper-sae


def read_autoencoder(contents: Contents) -> Found:
    """`AutoEncoder`: ReLU, one bias before and after."""
    cfg = _dictionary_cfg(contents, {**LINEAR, "bias": "d_in"}, "AutoEncoder")
    tensors = _take(contents, {**LINEAR_NAMES, "b_dec": "bias"})
    return Found(contents.path, {**cfg, "architecture": "standard"}, tensors)


def read_two_layers(contents: Contents) -> Found:
    """`AutoEncoderNew` and whisper-sae: ReLU without a bias before the encoder."""
    sizes = contents.sizes({**LINEAR, "decoder.bias": "d_in"})
    cfg = {
        "architecture": "standard",
        "d_in": sizes["d_in"],
        "d_sae": sizes["d_sae"],
        "apply_b_dec_to_input": False,
        "metadata": {"source": "whisper-sae v1"},
    }
    return Found(contents.path, cfg, _take(contents, {**LINEAR_NAMES, "b_dec": "decoder.bias"}))


def read_topk(contents: Contents, k: int | None, kind: str | None) -> Found:
    """`AutoEncoderTopK`, `BatchTopKSAE` and AudioSAE, which have the same tensors.

    `config.json` beside the file says which it is. Without one, a file with a
    threshold that was set is a BatchTopK: its class applies it, TopK's does not.
    """
    layout = {**LINEAR, "b_dec": "d_in"}
    cfg = _dictionary_cfg(contents, layout, "AutoEncoderTopK", "BatchTopKSAE")
    threshold = contents.scalar("threshold")
    is_set = threshold is not None and threshold >= 0
    dict_class = cfg["metadata"].get("dict_class")
    if kind is None and dict_class is not None:
        kind = "batchtopk" if dict_class == "BatchTopKSAE" else "topk"
    if kind is None:
        kind = "batchtopk" if is_set or _audiosae_layer(contents) is not None else "topk"
    tensors = _take(contents, {**LINEAR_NAMES, "b_dec": "b_dec"})
    if kind == "topk":
        cfg["k"] = which_k(contents, k, cfg["metadata"].get("k"))
        return Found(contents.path, {**cfg, "architecture": "topk"}, tensors)
    return _thresholded(contents, cfg, tensors, k)


def read_matryoshka(contents: Contents, k: int | None) -> Found:
    """`MatryoshkaBatchTopKSAE` with all its groups."""
    cfg = _dictionary_cfg(contents, MATRICES, "MatryoshkaBatchTopKSAE")
    sizes = contents.tensors["group_sizes"]
    is_whole = bool((sizes.double().isfinite() & (sizes == sizes.round()) & (sizes > 0)).all())
    if sizes.ndim != 1 or not is_whole or int(sizes.sum()) != cfg["d_sae"]:
        raise SAEFileError(
            f"group_sizes in {contents.path} sum to {float(sizes.double().sum()):g}; the "
            f"autoencoder has {cfg['d_sae']} latents, and a group has at least one."
        )
    cfg["metadata"]["group_sizes"] = [int(size) for size in sizes]
    return _thresholded(contents, cfg, {name: contents.tensors[name] for name in MATRICES}, k)


def read_jumprelu(contents: Contents) -> Found:
    """`JumpReluAutoEncoder`: a threshold for each latent, no bias before."""
    layout = {**MATRICES, "threshold": "d_sae"}
    cfg = _dictionary_cfg(contents, layout, "JumpReluAutoEncoder")
    cfg |= {"architecture": "jumprelu", "apply_b_dec_to_input": False}
    return Found(contents.path, cfg, {name: contents.tensors[name] for name in layout})


def read_gated(contents: Contents) -> Found:
    """`GatedAutoEncoder`: SAELens's gated autoencoder under other names."""
    names = {"b_gate": "gate_bias", "b_mag": "mag_bias", "r_mag": "r_mag"}
    layout = {**LINEAR, **dict.fromkeys(names.values(), "d_sae"), "decoder_bias": "d_in"}
    cfg = _dictionary_cfg(contents, layout, "GatedAutoEncoder")
    names |= {"W_enc": "encoder.weight", "W_dec": "decoder.weight", "b_dec": "decoder_bias"}
    return Found(contents.path, {**cfg, "architecture": "gated"}, _take(contents, names))


def which_k(contents: Contents, asked: int | None, *others: Any) -> int:
    """How many latents a TopK keeps: from the file, its config or the caller, who must agree."""
    given = [k for k in (contents.scalar("k"), *others, asked) if k is not None]
    if not given:
        raise SAEFileError(
            f"{contents.path} does not say how many latents it keeps: call load_sae(path, k=...). "
            f"It holds {contents.describe()}."
        )
    if any(type(k) is not int or k != given[0] for k in given):
        raise SAEFileError(
            f"k of {contents.path} is {' and '.join(map(repr, given))}; file, config.json and "
            "load_sae(k=...) must give the same whole number."
        )
    return int(given[0])


def _take(contents: Contents, names: dict[str, str]) -> dict[str, Tensor]:
    """Tensors under this package's names; linear layers hold their matrices the other way round."""
    found = {}
    for ours, theirs in names.items():
        value = contents.tensors[theirs]
        found[ours] = value.T if theirs in ("encoder.weight", "decoder.weight") else value
    return found


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
    if not isfinite(threshold):
        raise SAEFileError(
            f"threshold in {contents.path} is {threshold}: the file is damaged, or its training "
            "diverged. load_sae(path, architecture='topk') keeps the k largest latents instead."
        )
    given = [each for each in (contents.scalar("k"), cfg["metadata"].get("k"), k) if each]
    if given:
        cfg["metadata"]["k"] = which_k(contents, k, cfg["metadata"].get("k"))
    # A threshold that was never set is -1 there, and lets every positive latent through, as 0 does.
    value = tensors["b_dec"].new_tensor(max(0.0, threshold))
    tensors["threshold"] = value.expand(cfg["d_sae"])
    return Found(contents.path, {**cfg, "architecture": "jumprelu"}, tensors)


def _dictionary_cfg(contents: Contents, layout: dict[str, str], *classes: str) -> dict[str, Any]:
    """Sizes, hook name and metadata, after a check against config.json."""
    sizes = contents.sizes(layout)
    trainer = _trainer(contents)
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
    folder = re.fullmatch(r"layer_(\d+)", contents.path.absolute().parent.name)
    if folder:
        return int(folder[1])
    trainer = _trainer(contents)
    is_whisper = "whisper" in str(trainer.get("lm_name", "")).lower()
    layer = trainer.get("layer")
    return layer if is_whisper and type(layer) is int else None


def _trainer(contents: Contents) -> dict[str, Any]:
    trainer = contents.config.get("trainer", contents.config)
    return trainer if isinstance(trainer, dict) else {}


# FREUD and Reid


def read_freud_topk(contents: Contents, k: int | None) -> Found:
    """FREUD's TopK autoencoder; k stands in its hyperparameters."""
    layout = {name: LINEAR[name] for name in ("encoder.weight", "encoder.bias")}
    cfg = _freud_cfg(contents, {**layout, "W_dec": "d_sae d_in", "b_dec": "d_in"})
    hparams = _part(contents.around, "hparams")
    given = [_part(hparams, part).get("k") for part in ("topk_params", "autoencoder_config")]
    cfg["k"] = which_k(contents, k, *given, hparams.get("k"))
    cfg |= {"architecture": "topk", "apply_b_dec_to_input": True}
    names = {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "W_dec", "b_dec": "b_dec"}
    return Found(contents.path, cfg, _take(contents, names))


def read_tied(contents: Contents) -> Found:
    """FREUD's L1 autoencoder, and Reid's: tied weights, no bias of the decoder."""
    layout = {"decoder.weight": "d_in d_sae", "encoder_bias": "d_sae"}
    cfg = _freud_cfg(contents, layout)
    stored = contents.tensors["decoder.weight"]
    columns = torch.nn.functional.normalize(stored.float(), dim=0).to(stored.dtype)
    tensors = {
        "W_dec": columns.T,
        "b_enc": contents.tensors["encoder_bias"],
        "b_dec": columns.new_zeros(cfg["d_in"]),
    }
    cfg |= {"architecture": "standard", "tied": True, "apply_b_dec_to_input": False}
    return Found(contents.path, cfg, tensors)


def _freud_cfg(contents: Contents, layout: dict[str, str]) -> dict[str, Any]:
    sizes = contents.sizes(layout)
    hparams = _part(contents.around, "hparams")
    layer = hparams.get("layer_name", _part(hparams, "whisper_config").get("layer_name"))
    hparams = {key: value for key, value in hparams.items() if _is_plain(value)}
    metadata = {"source": "FREUD", "hparams": hparams} if hparams else {"source": "Reid 2023"}
    return {
        "d_in": sizes["d_in"],
        "d_sae": sizes["d_sae"],
        "hook_name": hook_of_module(layer),
        "metadata": metadata,
    }


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


# Their names for layers


def hook_of_module(name: object) -> str | None:
    """The hook that sees the output of one of openai-whisper's modules; None if none does.

    >>> hook_of_module("encoder.blocks.2"), hook_of_module("encoder.blocks.2.mlp.1")
    ('encoder.blocks.2.hook_resid_post', 'encoder.blocks.2.mlp.hook_post')
    """
    found = re.fullmatch(r"((?:encoder|decoder)\.blocks\.\d+)(\..+)?", str(name))
    if not found or (found[2] or "") not in BLOCK_HOOKS:
        return None
    return f"{found[1]}.{BLOCK_HOOKS[found[2] or '']}"


def hook_of_audiosae(layer: object) -> str | None:
    """The hook of an AudioSAE layer: they count from 1, and stand behind the block.

    >>> hook_of_audiosae(1)
    'encoder.blocks.0.hook_resid_post'
    """
    if type(layer) is not int or layer < 1:
        return None
    return f"encoder.blocks.{layer - 1}.hook_resid_post"


# All that are known


class Format(NamedTuple):
    """A kind of state dictionary: which tensors it has and may have, and who reads it."""

    name: str
    needs: str
    read: Callable[[Contents, int | None, str | None], Found]
    may: str = ""

    def matches(self, names: set[str]) -> bool:
        """Whether a file with these tensors is of this kind."""
        needs = set(self.needs.split())
        return needs <= names <= needs | set(self.may.split())


FORMATS = (
    Format(
        "dictionary_learning AutoEncoder",
        "encoder.weight encoder.bias decoder.weight bias",
        lambda contents, k, kind: read_autoencoder(contents),
    ),
    Format(
        "dictionary_learning AutoEncoderTopK or BatchTopKSAE, AudioSAE",
        "encoder.weight encoder.bias decoder.weight b_dec",
        read_topk,
        may="k threshold",
    ),
    Format(
        "dictionary_learning MatryoshkaBatchTopKSAE",
        "W_enc b_enc W_dec b_dec threshold group_sizes",
        lambda contents, k, kind: read_matryoshka(contents, k),
        may="k",
    ),
    Format(
        "dictionary_learning JumpReluAutoEncoder",
        "W_enc b_enc W_dec b_dec threshold",
        lambda contents, k, kind: read_jumprelu(contents),
    ),
    Format(
        "dictionary_learning GatedAutoEncoder",
        "encoder.weight decoder.weight decoder_bias r_mag gate_bias mag_bias",
        lambda contents, k, kind: read_gated(contents),
    ),
    Format(
        "whisper-sae v1, dictionary_learning AutoEncoderNew",
        "encoder.weight encoder.bias decoder.weight decoder.bias",
        lambda contents, k, kind: read_two_layers(contents),
    ),
    Format(
        "FREUD TopK",
        "encoder.weight encoder.bias W_dec b_dec",
        lambda contents, k, kind: read_freud_topk(contents, k),
    ),
    Format(
        "FREUD L1, Reid 2023",
        "decoder.weight encoder_bias",
        lambda contents, k, kind: read_tied(contents),
    ),
)
"""The state dictionaries that are known; no two have the same tensors."""
