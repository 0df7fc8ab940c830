"""What SAELens's folders hold, and an autoencoder in that form.

All fields of this package's configurations stand in `cfg.json` as SAELens's own
do, hook names among the metadata. SAELens passes over those that it does not
know, and over `"hooked_whisper"`, which says what was added for SAELens alone.

Source: SAELens 6.54, `SAE.save_model`.
"""

from typing import Any

from torch import Tensor

from hooked_whisper.errors import SAEFileError

CFG_NAME = "cfg.json"
WEIGHTS_NAME = "sae_weights.safetensors"
OWN_KEY = "hooked_whisper"

FORMAT_VERSION = "6.54.0"
"""The sae-lens whose format is written; below 6, sae-lens would read it as an older one."""

IN_METADATA = ("hook_name", "hook_name_out")
"""Fields of configurations here that are metadata there."""

WITH_TOP_K = "topk_"
"""Before the name of a transcoder with k, which SAELens does not have: it refuses the name
instead of passing over the k."""


def write_values(sae: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """`cfg.json` and the tensors of an autoencoder, as SAELens has them."""
    cfg = sae.cfg.to_dict()
    if "transcoder" in cfg["architecture"] and cfg.get("k") is not None:
        cfg["architecture"] = WITH_TOP_K + cfg["architecture"]
    metadata = dict(cfg.pop("metadata"))
    for key in IN_METADATA:
        if key in cfg and key in metadata:
            raise SAEFileError(
                f"metadata has a {key!r} of its own, {metadata[key]!r}: SAELens keeps the "
                f"configuration's {key} there, {cfg[key]!r}. Take it out of metadata."
            )
        value = cfg.pop(key, None)
        if value is not None:
            metadata[key] = value
    added = {"sae_lens_version": FORMAT_VERSION, "sae_lens_training_version": None}
    added = {key: value for key, value in added.items() if key not in metadata}
    cfg |= {"dtype": str(sae.dtype).removeprefix("torch."), "device": "cpu"}
    cfg["reshape_activations"] = metadata.pop("reshape_activations", "none")
    cfg["metadata"] = {**metadata, **added}
    cfg[OWN_KEY] = {"version": 1, "added_metadata": sorted(added)}
    tensors = {name: value.detach() for name, value in sae.state_dict().items()}
    tensors.setdefault("W_enc", sae.W_enc.detach().clone())  # a tied encoder is no parameter
    return cfg, {name: value.cpu().contiguous() for name, value in tensors.items()}
