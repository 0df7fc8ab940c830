"""Every activation by its name, against what torch hooks read from the references.

Ours are compared as they pass by: those of Tiny, patterns above all, take gigabytes
where both sides are kept.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch.nn.functional as F
from torch import Tensor

EXPLICIT = ("hook_attn_scores", "hook_pattern", "hook_scale")
"""What a layer computes only where somebody looks."""

N_TOKENS = 33


def recordings(family: Any) -> Tensor:
    """Three recordings, or one where the patterns of three would fill the memory."""
    return family.mel[: 1 if family.hooked.cfg.n_audio_ctx == 1500 else 3]


class TestAgainstOpenAI:
    def test_everything_that_the_fused_path_has(
        self, family: Any, assert_same: Callable[..., None]
    ) -> None:
        mel = recordings(family)
        tokens = family.tokens[: len(mel), :N_TOKENS]
        theirs = openai_activations(family.openai, mel, tokens)
        names = [name for name in family.hooked.hook_names() if not name.endswith(EXPLICIT)]
        assert set(names) == set(theirs)

        def check(value: Tensor, hook: Any) -> None:
            assert_same(value, theirs.pop(hook.name), hook.name)

        family.hooked.run_with_hooks(mel, tokens, fwd_hooks=[(names, check)])
        assert not theirs

    def test_scores_and_patterns(self, family: Any, assert_same: Callable[..., None]) -> None:
        from whisper.model import disable_sdpa

        mel = recordings(family)
        tokens = family.tokens[: len(mel), :N_TOKENS]
        with disable_sdpa():
            theirs = openai_activations(family.openai, mel, tokens, only_attention=True)
        assert set(theirs) == set(family.hooked.hook_names("*hook_attn_scores"))

        def check_scores(value: Tensor, hook: Any) -> None:
            assert_same(value, theirs[hook.name], hook.name)

        def check_pattern(value: Tensor, hook: Any) -> None:
            scores = theirs.pop(hook.name.replace("pattern", "attn_scores"))
            assert_same(value, F.softmax(scores, dim=-1), hook.name)

        hooks = [("*hook_attn_scores", check_scores), ("*hook_pattern", check_pattern)]
        family.hooked.run_with_hooks(mel, tokens, fwd_hooks=hooks)
        assert not theirs

    def test_scales(self, family: Any, assert_close: Callable[..., None]) -> None:
        """The reference is the standard deviation of what its LayerNorms read."""
        mel = recordings(family)
        tokens = family.tokens[: len(mel), :N_TOKENS]
        names = family.hooked.hook_names("*hook_scale")
        _, ours = family.hooked.run_with_cache(mel, tokens, names_filter=names)
        theirs = openai_scales(family.openai, mel, tokens)
        assert set(names) == set(theirs)
        for name in names:
            assert_close(ours[name], theirs[name], name)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_streams_and_heads_against_transformers(
    family: Any, attention: str, assert_close: Callable[..., None]
) -> None:
    if family.hooked.cfg.n_audio_ctx == 1500 and attention == "eager":
        pytest.skip("at the full window test_patterns_against_transformers attends eagerly")
    mel = recordings(family)
    tokens = family.tokens[: len(mel), :N_TOKENS]
    with family.hf_attention(attention) as hf:
        theirs = hf_activations(hf, mel, tokens)
    assert set(theirs) <= set(family.hooked.hook_names())

    def check(value: Tensor, hook: Any) -> None:
        # Twice that of logits: for some, the references' own distance from each other.
        assert_close(value, theirs.pop(hook.name), hook.name, times=2 * family.times)

    family.hooked.run_with_hooks(mel, tokens, fwd_hooks=[(list(theirs), check)])
    assert not theirs


def test_patterns_against_transformers(family: Any, assert_close: Callable[..., None]) -> None:
    mel = recordings(family)
    tokens = family.tokens[: len(mel), :N_TOKENS]
    with family.hf_attention("eager") as hf:
        output = hf(
            input_features=mel,
            decoder_input_ids=tokens,
            use_cache=False,
            output_attentions=True,
        )
    kinds = {
        ("encoder", "attn"): output.encoder_attentions,
        ("decoder", "attn"): output.decoder_attentions,
        ("decoder", "cross_attn"): output.cross_attentions,
    }
    theirs = {
        f"{stack}.blocks.{layer}.{attn}.hook_pattern": pattern
        for (stack, attn), patterns in kinds.items()
        for layer, pattern in enumerate(patterns)
    }
    assert set(theirs) == set(family.hooked.hook_names("*hook_pattern"))

    def check(value: Tensor, hook: Any) -> None:
        # Probabilities are of order 1, not 10.
        assert_close(value, theirs[hook.name], hook.name, times=0.2 * family.times)

    family.hooked.run_with_hooks(mel, tokens, fwd_hooks=[("*hook_pattern", check)])


@pytest.mark.parametrize(
    "names",
    ["*hook_pattern", "*hook_attn_scores", "*hook_scale", "decoder.blocks.1.attn.hook_pattern"],
)
@pytest.mark.parametrize("size", ["short", "turbo", "digits"])
def test_explicit_and_fused_paths_agree(
    make_family: Any, size: str, names: str, assert_close: Callable[..., None]
) -> None:
    family = make_family(size)
    mel, tokens = family.mel[:1], family.tokens[:1, :N_TOKENS]
    seen = []
    hooks = [(names, lambda value, hook: seen.append(hook.name))]
    explicit = family.hooked.run_with_hooks(mel, tokens, fwd_hooks=hooks)
    assert seen == family.hooked.hook_names(names)
    assert_close(explicit, family.hooked(mel, tokens), "logits", times=family.times)


def openai_activations(
    model: Any, mel: Tensor, tokens: Tensor, only_attention: bool = False
) -> dict[str, Tensor]:
    """openai-whisper's activations by our names, read by torch hooks on its own modules."""
    found: dict[str, Tensor] = {}
    with Reader(found) as reader:
        for stack in ("encoder", "decoder"):
            for layer, block in enumerate(getattr(model, stack).blocks):
                at = f"{stack}.blocks.{layer}"
                layers = {"attn": block.attn, "cross_attn": block.cross_attn}
                for name, attn in layers.items():
                    if attn is not None and only_attention:
                        reader.scores(attn, f"{at}.{name}")
                    elif attn is not None:
                        reader.heads(attn, attn.n_head, f"{at}.{name}", OPENAI_HEADS)
                if not only_attention:
                    read_openai_block(reader, block, at)
        if not only_attention:
            read_openai_ends(reader, model, len(mel))
        model(mel, tokens)
    return found


OPENAI_HEADS = {"q": "query", "k": "key", "v": "value", "z": "out"}
HF_HEADS = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "z": "out_proj"}


class Reader:
    """Torch hooks on a reference that write into a dictionary, for the length of a `with` block."""

    def __init__(self, found: dict[str, Tensor]) -> None:
        self.found = found
        self.handles: list[Any] = []

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *_: Any) -> None:
        for handle in self.handles:
            handle.remove()

    def output(self, module: Any, name: str, change: Any = None) -> None:
        """Keep what a module returns, or the first of what it returns."""

        def keep(_: Any, __: Any, output: Any) -> None:
            value = output[0] if isinstance(output, tuple) else output
            self.found[name] = (change(value) if change else value).clone()

        self.handles.append(module.register_forward_hook(keep))

    def input(self, module: Any, name: str, change: Any = None) -> None:
        """Keep what a module is called with."""

        def keep(_: Any, args: Any) -> None:
            self.found[name] = (change(args[0]) if change else args[0]).clone()

        self.handles.append(module.register_forward_pre_hook(keep))

    def heads(self, attn: Any, n_heads: int, at: str, parts: dict[str, str]) -> None:
        """Keep queries, keys and values, and what is read from them, by head."""
        for name, part in parts.items():
            keep = self.input if name == "z" else self.output
            keep(getattr(attn, part), f"{at}.hook_{name}", lambda x: x.unflatten(-1, (n_heads, -1)))

    def scores(self, attn: Any, at: str) -> None:
        """Keep the scores that openai-whisper returns without SDPA."""

        def keep(_: Any, __: Any, output: Any) -> None:
            self.found[f"{at}.hook_attn_scores"] = output[1]

        self.handles.append(attn.register_forward_hook(keep))


def read_openai_block(reader: Reader, block: Any, at: str) -> None:
    reader.input(block, f"{at}.hook_resid_pre")
    reader.output(block.attn_ln, f"{at}.ln1.hook_normalized")
    reader.output(block.attn, f"{at}.hook_attn_out")
    if block.cross_attn is None:
        reader.input(block.mlp_ln, f"{at}.hook_resid_mid")
        reader.output(block.mlp_ln, f"{at}.ln2.hook_normalized")
    else:
        reader.input(block.cross_attn_ln, f"{at}.hook_resid_mid")
        reader.output(block.cross_attn_ln, f"{at}.ln2.hook_normalized")
        reader.output(block.cross_attn, f"{at}.hook_cross_attn_out")
        reader.input(block.mlp_ln, f"{at}.hook_resid_mid_cross")
        reader.output(block.mlp_ln, f"{at}.ln3.hook_normalized")
    reader.output(block.mlp[0], f"{at}.mlp.hook_pre")
    reader.output(block.mlp[1], f"{at}.mlp.hook_post")
    reader.output(block.mlp, f"{at}.hook_mlp_out")
    reader.output(block, f"{at}.hook_resid_post")


def read_openai_ends(reader: Reader, model: Any, batch: int) -> None:
    encoder, decoder = model.encoder, model.decoder
    reader.input(encoder, "encoder.hook_mel")
    reader.output(encoder.conv1, "encoder.hook_conv1", F.gelu)
    reader.output(encoder.conv2, "encoder.hook_conv2", F.gelu)
    reader.output(encoder.conv2, "encoder.hook_embed", lambda x: F.gelu(x).permute(0, 2, 1))
    reader.output(encoder.ln_post, "encoder.ln_final.hook_normalized")
    reader.output(decoder.token_embedding, "decoder.hook_embed")
    reader.output(decoder.ln, "decoder.ln_final.hook_normalized")
    reader.output(decoder, "decoder.hook_logits")
    positions = {"encoder": encoder.positional_embedding, "decoder": decoder.positional_embedding}
    for stack, each in positions.items():
        n_pos = N_TOKENS if stack == "decoder" else len(each)
        reader.found[f"{stack}.hook_pos_embed"] = each[:n_pos].expand(batch, -1, -1)


def openai_scales(model: Any, mel: Tensor, tokens: Tensor) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}

    def scale(x: Tensor) -> Tensor:
        return (x.var(dim=-1, correction=0, keepdim=True) + 1e-5).sqrt()

    with Reader(found) as reader:
        for layer, block in enumerate(model.encoder.blocks):
            for name, norm in {"ln1": block.attn_ln, "ln2": block.mlp_ln}.items():
                reader.input(norm, f"encoder.blocks.{layer}.{name}.hook_scale", scale)
        for layer, block in enumerate(model.decoder.blocks):
            norms = {"ln1": block.attn_ln, "ln2": block.cross_attn_ln, "ln3": block.mlp_ln}
            for name, norm in norms.items():
                reader.input(norm, f"decoder.blocks.{layer}.{name}.hook_scale", scale)
        reader.input(model.encoder.ln_post, "encoder.ln_final.hook_scale", scale)
        reader.input(model.decoder.ln, "decoder.ln_final.hook_scale", scale)
        model(mel, tokens)
    return found


def hf_activations(model: Any, mel: Tensor, tokens: Tensor) -> dict[str, Tensor]:
    """transformers' activations by our names, read by torch hooks on its own modules."""
    found: dict[str, Tensor] = {}
    with Reader(found) as reader:
        for stack in ("encoder", "decoder"):
            for index, layer in enumerate(getattr(model.model, stack).layers):
                read_hf_layer(reader, layer, f"{stack}.blocks.{index}", stack == "decoder")
        reader.input(model.model.encoder.conv2, "encoder.hook_conv1")
        reader.output(model.model.encoder.layer_norm, "encoder.ln_final.hook_normalized")
        reader.output(model.model.decoder.layer_norm, "decoder.ln_final.hook_normalized")
        reader.output(model.proj_out, "decoder.hook_logits")
        model(input_features=mel, decoder_input_ids=tokens, use_cache=False)
    return found


def read_hf_layer(reader: Reader, layer: Any, at: str, is_decoder: bool) -> None:
    reader.input(layer.self_attn_layer_norm, f"{at}.hook_resid_pre")
    reader.output(layer.self_attn_layer_norm, f"{at}.ln1.hook_normalized")
    reader.heads(layer.self_attn, layer.self_attn.num_heads, f"{at}.attn", HF_HEADS)
    reader.output(layer.self_attn, f"{at}.hook_attn_out")
    if is_decoder:
        cross = layer.encoder_attn
        reader.input(layer.encoder_attn_layer_norm, f"{at}.hook_resid_mid")
        reader.output(layer.encoder_attn_layer_norm, f"{at}.ln2.hook_normalized")
        reader.heads(cross, cross.num_heads, f"{at}.cross_attn", HF_HEADS)
        reader.output(cross, f"{at}.hook_cross_attn_out")
        reader.input(layer.final_layer_norm, f"{at}.hook_resid_mid_cross")
    else:
        reader.input(layer.final_layer_norm, f"{at}.hook_resid_mid")
    last = "ln3" if is_decoder else "ln2"
    reader.output(layer.final_layer_norm, f"{at}.{last}.hook_normalized")
    reader.output(layer.fc1, f"{at}.mlp.hook_pre")
    reader.input(layer.fc2, f"{at}.mlp.hook_post")
    reader.output(layer.fc2, f"{at}.hook_mlp_out")
    reader.output(layer, f"{at}.hook_resid_post")
