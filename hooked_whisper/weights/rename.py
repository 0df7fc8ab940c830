"""The names and shapes of a Whisper's tensors: here, in openai-whisper and in transformers.

    hooked_whisper                 openai-whisper            transformers
    encoder.positional_embedding   the same                  encoder.embed_positions.weight
    {s}.blocks.{l}                 the same                  {s}.layers.{l}
    attn.{query,key,value,out}     the same                  self_attn.{q,k,v,out}_proj
    cross_attn.{query,...}         the same                  encoder_attn.{q,k,v,out}_proj
    ln1                            attn_ln                   self_attn_layer_norm
    ln2 (encoder), ln3 (decoder)   mlp_ln                    final_layer_norm
    ln2 (decoder)                  cross_attn_ln             encoder_attn_layer_norm
    mlp.fc_in, mlp.fc_out          mlp.0, mlp.2              fc1, fc2
    encoder.ln_final               encoder.ln_post           encoder.layer_norm
    decoder.ln_final               decoder.ln                decoder.layer_norm
    decoder.token_embedding        the same                  decoder.embed_tokens

Source: `convert_openai_to_hf.py` in transformers, and the two models' own sources.
"""

import re
from collections.abc import Callable, Iterable, Mapping

from hooked_whisper.config import HookedWhisperConfig, Stack
from hooked_whisper.errors import ArchitectureError, WeightNameError, WeightShapeError
from hooked_whisper.weights.files import StoredTensor

Size = int | str
"""A size of an axis: a number, or the name of the config's field that gives it."""

_MOST_LISTED = 140
"""Characters of a list of names in an error."""

_OPENAI = (
    (r"\.ln1\.", ".attn_ln."),
    (r"^(encoder\..*)\.ln2\.", r"\1.mlp_ln."),
    (r"^(decoder\..*)\.ln2\.", r"\1.cross_attn_ln."),
    (r"\.ln3\.", ".mlp_ln."),
    (r"\.mlp\.fc_in\.", ".mlp.0."),
    (r"\.mlp\.fc_out\.", ".mlp.2."),
    (r"^encoder\.ln_final\.", "encoder.ln_post."),
    (r"^decoder\.ln_final\.", "decoder.ln."),
)
_HUGGINGFACE = (
    (r"\.blocks\.", ".layers."),
    (r"\.attn\.(query|key|value)\.", lambda match: f".self_attn.{match[1][0]}_proj."),
    (r"\.attn\.out\.", ".self_attn.out_proj."),
    (r"\.cross_attn\.(query|key|value)\.", lambda match: f".encoder_attn.{match[1][0]}_proj."),
    (r"\.cross_attn\.out\.", ".encoder_attn.out_proj."),
    (r"\.ln1\.", ".self_attn_layer_norm."),
    (r"^(encoder\..*)\.ln2\.", r"\1.final_layer_norm."),
    (r"^(decoder\..*)\.ln2\.", r"\1.encoder_attn_layer_norm."),
    (r"\.ln3\.", ".final_layer_norm."),
    (r"\.mlp\.fc_in\.", ".fc1."),
    (r"\.mlp\.fc_out\.", ".fc2."),
    (r"\.ln_final\.", ".layer_norm."),
    (r"\.token_embedding\.", ".embed_tokens."),
    (r"\.positional_embedding$", ".embed_positions.weight"),
)


def openai_name(name: str) -> str:
    """The name of a tensor in openai-whisper's state dict.

    >>> openai_name("decoder.blocks.0.ln2.weight")
    'decoder.blocks.0.cross_attn_ln.weight'
    """
    return _substitute(name, _OPENAI)


def huggingface_name(name: str) -> str:
    """The name of a tensor in the state dict of transformers' `WhisperModel`.

    >>> huggingface_name("decoder.blocks.0.attn.query.weight")
    'decoder.layers.0.self_attn.q_proj.weight'
    """
    return _substitute(name, _HUGGINGFACE)


def expected_shapes(cfg: HookedWhisperConfig) -> dict[str, tuple[Size, ...]]:
    """Every tensor of a Whisper by its name here, with the fields that give its axes.

    Told from the configuration and not from a model, so that a file's absurd sizes
    are refused before one is built.
    """
    shapes: dict[str, tuple[Size, ...]] = {
        "encoder.conv1.weight": ("d_model", "n_mels", 3),
        "encoder.conv1.bias": ("d_model",),
        "encoder.conv2.weight": ("d_model", "d_model", 3),
        "encoder.conv2.bias": ("d_model",),
        "encoder.positional_embedding": ("n_audio_ctx", "d_model"),
    }
    linears: dict[str, tuple[Size, ...]] = {}
    stacks: tuple[Stack, ...] = ("encoder", "decoder") if cfg.has_decoder else ("encoder",)
    norms = [f"{stack}.ln_final" for stack in stacks]
    if cfg.has_decoder:
        shapes["decoder.token_embedding.weight"] = ("d_vocab", "d_model")
        shapes["decoder.positional_embedding"] = ("n_text_ctx", "d_model")
    for stack in stacks:
        attentions = ("attn",) if stack == "encoder" else ("attn", "cross_attn")
        for layer in range(cfg.n_layers(stack)):
            block = f"{stack}.blocks.{layer}"
            for attention in attentions:
                for part in ("query", "key", "value", "out"):
                    linears[f"{block}.{attention}.{part}"] = ("d_model", "d_model")
            linears[f"{block}.mlp.fc_in"] = ("d_mlp", "d_model")
            linears[f"{block}.mlp.fc_out"] = ("d_model", "d_mlp")
            norms += [f"{block}.ln{number}" for number in range(1, len(attentions) + 2)]
    if cfg.has_decoder and not cfg.tie_unembedding:
        linears["decoder.unembedding"] = ("d_vocab", "d_model")
    for name, shape in linears.items():
        shapes[f"{name}.weight"] = shape
        if cfg.key_bias or not name.endswith(".key"):
            shapes[f"{name}.bias"] = shape[:1]
    for name in norms:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = ("d_model",)
    return shapes


def match_tensors(
    stored: Mapping[str, StoredTensor],
    cfg: HookedWhisperConfig,
    rename: Callable[[str], str],
    source: str,
    omitted: Iterable[str] = (),
) -> dict[str, StoredTensor]:
    """Every tensor of a checkpoint by its name here, once all names and shapes are right.

    Args:
        stored: What the checkpoint holds, by its names there.
        rename: From a name here to the name there.
        source: What to call the checkpoint in errors.
        omitted: Names here that this checkpoint leaves out on purpose.
    """
    n_layers = cfg.n_audio_layers + cfg.n_text_layers
    if n_layers > len(stored):
        raise ArchitectureError(
            f"{source} has {len(stored)} tensors, and a config of {cfg.n_audio_layers} encoder and "
            f"{cfg.n_text_layers} decoder layers. Use the config that belongs to these weights."
        )
    shapes = expected_shapes(cfg)
    for name in omitted:
        shapes.pop(name, None)
    theirs = {rename(name): name for name in shapes}
    check_names(set(theirs), set(stored), source)
    wrong = [
        describe_mismatch(key, stored[key].shape, shapes[name], cfg, source)
        for key, name in theirs.items()
        if stored[key].shape != sizes(shapes[name], cfg)
    ]
    if wrong:
        more = f" {len(wrong) - 5} more tensors do not fit." if len(wrong) > 5 else ""
        raise WeightShapeError(" ".join(wrong[:5]) + more)
    return {name: stored[key] for key, name in theirs.items()}


def check_names(needed: set[str], found: set[str], source: str) -> None:
    """Refuse a set of names that is not exactly the needed one, and list what differs."""
    missing, extra = needed - found, found - needed
    if not missing and not extra:
        return
    parts = []
    if missing:
        parts.append(f"{source} lacks {_count(missing)}: {_listing(missing)}.")
    if extra:
        parts.append(
            f"{source} holds {_count(extra)} that no Whisper of this config has: {_listing(extra)}."
        )
    advice = _unwrap(extra) or "A checkpoint must be whole, and nothing else."
    raise WeightNameError(" ".join([*parts, advice]))


def _unwrap(extra: set[str]) -> str | None:
    """How to go on where names say that something is wrapped around the model."""
    if any(".lora_" in name or ".base_layer." in name for name in extra):
        return (
            "This is a LoRA fine-tune of peft, not merged: call merge_and_unload() on the "
            "PeftModel, and load or save what that returns."
        )
    for prefix, maker, inner in (
        ("base_model.model.", "peft", "model.merge_and_unload()"),
        ("_orig_mod.", "torch.compile", "model._orig_mod"),
        ("module.", "DistributedDataParallel", "model.module"),
    ):
        if any(name.startswith(prefix) or f".{prefix}" in name for name in extra):
            return (
                f"{maker} put {prefix!r} into the names: load or save {inner}, or take "
                f"{prefix!r} out of every name."
            )
    return None


def sizes(shape: tuple[Size, ...], cfg: HookedWhisperConfig) -> tuple[int, ...]:
    """A shape in numbers."""
    return tuple(size if isinstance(size, int) else getattr(cfg, size) for size in shape)


def describe_mismatch(
    key: str,
    found: tuple[int, ...],
    shape: tuple[Size, ...],
    cfg: HookedWhisperConfig,
    source: str,
) -> str:
    """A sentence that says which field of the config asks for another shape."""
    needed = sizes(shape, cfg)
    reasons = []
    if len(found) == len(needed):
        fields = {
            size: getattr(cfg, size)
            for size, have, need in zip(shape, found, needed, strict=True)
            if have != need and isinstance(size, str)
        }
        reasons = [f"{field} is {value}" for field, value in fields.items()]
    because = f" because {' and '.join(reasons)}" if reasons else ""
    return f"{key!r} in {source} is {found}; this config needs {needed}{because}."


def _substitute(
    name: str, rules: Iterable[tuple[str, str | Callable[[re.Match[str]], str]]]
) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def _count(names: set[str]) -> str:
    return "1 tensor" if len(names) == 1 else f"{len(names)} tensors"


def _listing(names: set[str]) -> str:
    """Names, drawn together over the layers: `encoder.blocks.{0,1}.ln1.bias`; the first of many."""
    layers: dict[tuple[str, str], list[int]] = {}
    listed = []
    for name in names:
        match = re.fullmatch(r"(.*\.(?:blocks|layers)\.)(\d{1,6})(\..*)", name)
        if match is None:
            listed.append(name)
        else:
            layers.setdefault((match[1], match[3]), []).append(int(match[2]))
    for (before, after), numbers in layers.items():
        inside = ",".join(map(str, sorted(numbers)))
        listed.append(before + (inside if len(numbers) == 1 else f"{{{inside}}}") + after)
    text = ", ".join(sorted(listed))
    return text if len(text) <= _MOST_LISTED else f"{text[:_MOST_LISTED]}..."
