"""How long each axis of an activation is."""

from typing import Any

from hooked_whisper.config import Stack
from hooked_whisper.hooks.names import site_of


def axis_sizes(model: Any, name: str) -> tuple[int | None, ...]:
    """The length of each axis of an activation; None where it depends on the input.

    That is the batch and, in the decoder, the positions and the keys of self-attention.

    Args:
        model: A `HookedWhisper`.
        name: A hook, spliced in or not.
    """
    cfg, point = model.cfg, model.hook_dict[name]
    base = site_of(name)
    stack: Stack = "encoder" if name.startswith("encoder") else "decoder"
    of_audio = None if stack == "decoder" else cfg.n_audio_ctx
    sizes: dict[str, int | None] = {
        "mel": cfg.n_mels,
        "frame": cfg.n_frames,
        "pos": of_audio,
        "query": of_audio,
        "key": cfg.n_audio_ctx if "cross" in name else of_audio,
        "head": cfg.n_heads(stack),
        "d_head": cfg.d_head(stack),
        "d_model": cfg.d_model,
        "d_mlp": cfg.d_mlp,
        "vocab": cfg.d_vocab,
    }
    if base.endswith("hook_scale"):
        sizes["d_model"] = 1  # one number for each vector
    if ".ln1." in base and cfg.use_split_qkv_input:
        sizes["head"] = 3 * cfg.n_heads(stack)  # the inputs of q, k and v, side by side
    sizes |= point.sizes
    return tuple(sizes.get(axis) for axis in point.axes)
