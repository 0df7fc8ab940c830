"""Where an autoencoder belongs, out of other packages' names for layers."""

import re

BLOCK_SITES = {
    "": "hook_resid_post",
    ".attn.out": "hook_attn_out",
    ".cross_attn.out": "hook_cross_attn_out",
    ".mlp": "hook_mlp_out",
    ".mlp.2": "hook_mlp_out",
    ".mlp.1": "mlp.hook_post",
    ".mlp.0": "mlp.hook_pre",
}
"""What a module of openai-whisper's blocks puts out, and the hook that sees it."""


def hook_of_module(name: object) -> str | None:
    """The hook that sees the output of one of openai-whisper's modules; None if none does.

    >>> hook_of_module("encoder.blocks.2"), hook_of_module("encoder.blocks.2.mlp.1")
    ('encoder.blocks.2.hook_resid_post', 'encoder.blocks.2.mlp.hook_post')
    """
    found = re.fullmatch(r"((?:encoder|decoder)\.blocks\.\d+)(\..+)?", str(name))
    if not found or (found[2] or "") not in BLOCK_SITES:
        return None
    return f"{found[1]}.{BLOCK_SITES[found[2] or '']}"


def hook_of_audiosae(layer: object) -> str | None:
    """The hook of an AudioSAE layer: they count from 1, and stand behind the block.

    >>> hook_of_audiosae(1)
    'encoder.blocks.0.hook_resid_post'
    """
    if type(layer) is not int or layer < 1:
        return None
    return f"encoder.blocks.{layer - 1}.hook_resid_post"
