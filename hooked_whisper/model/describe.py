"""What a model shows of itself: sizes, place, hooks and autoencoders."""

from typing import get_args

from hooked_whisper.config import Stack
from hooked_whisper.display import box, facts
from hooked_whisper.model.calls import WhisperBase


def as_text(model: WhisperBase) -> str:
    """Sizes, place, hooks and autoencoders; `print(model.encoder)` shows modules."""
    lines = [f"  {name:<8} {value}" for name, value in _facts(model).items()]
    return "\n".join([f"{type(model).__name__} {_headline(model)}", *lines])


def as_html(model: WhisperBase) -> str:
    """The same as a table."""
    return box(type(model).__name__, _headline(model), facts(_facts(model)))


def _headline(model: WhisperBase) -> str:
    n_parameters = sum(weight.numel() for weight in model.parameters())
    return f"{model.cfg.model_name!r}: {n_parameters:,} parameters, {model.dtype} on {model.device}"


def _facts(model: WhisperBase) -> dict[str, str]:
    cfg = model.cfg
    hooked = [name for name, point in model.hook_dict.items() if point.has_any_hook]
    stacks = {
        stack: f"{cfg.n_layers(stack)} layers x {cfg.n_heads(stack)} heads of "
        f"{cfg.d_head(stack)}, d_model {cfg.d_model}, d_mlp {cfg.d_mlp}"
        for stack in get_args(Stack)
        if stack == "encoder" or cfg.has_decoder
    }
    decoder = "none: this model is an encoder alone"
    if cfg.has_decoder:
        decoder = f"{stacks['decoder']}; {cfg.n_text_ctx} of {cfg.d_vocab:,} tokens"
    held = model.adapter_weights
    adapter = {"adapter": f"{held.source}, {'on' if held.is_on else 'off'}"} if held else {}
    return {
        "encoder": f"{stacks['encoder']}; {cfg.n_mels} mel bands, {cfg.window_s:g} s",
        "decoder": decoder,
        "hooks": f"{len(model.hook_names())} points in model.hook_names(); hooked: {_some(hooked)}",
        "SAEs": _some(list(model.acts_to_saes)),
        **adapter,
        "modules": "print(model.encoder), print(model.decoder)",
    }


def _some(names: list[str], most: int = 2) -> str:
    """Names on one line, not too many of them."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more if names else "none"
