"""The grammar of hook names: exact names, globs, shorthand, and hints for near misses.

A name is the path of the hook point in the model's tree, for instance
`decoder.blocks.2.cross_attn.hook_pattern`. Wherever names are taken, these
will do:

    "encoder.blocks.0.hook_resid_post"       one name
    "encoder.blocks.*.hook_resid_*"          a glob
    ("decoder", 2, "pattern", "cross_attn")  shorthand: stack, layer, name, part
    ("decoder", "logits")                    shorthand for what lies outside the blocks
    [..., ...]                               a list, tuple or set of these
    lambda name: name.endswith("hook_z")     any function of the name
"""

import difflib
import fnmatch
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, cast

from hooked_whisper.config import HookedWhisperConfig, Stack
from hooked_whisper.errors import HookDisabledError, HookNameError

NamesFilter = str | Collection[Any] | Callable[[str], bool] | None

_STACKS = ("encoder", "decoder")
_INSIDE = re.compile(r"(\.sae\d+)?\.hook_sae_\w+$")
_BLOCK = re.compile(r"(encoder|decoder)\.blocks\.(-?\d+)(?:\.|$)")


def stack_of(name: str) -> Stack:
    """The stack that a hook is in.

    >>> stack_of("encoder.blocks.0.hook_resid_post")
    'encoder'
    """
    return "encoder" if name.startswith("encoder") else "decoder"


def match_names(
    names_filter: NamesFilter, names: Collection[str], disabled: Mapping[str, str] | None = None
) -> list[str]:
    """The names that a filter chooses, in the model's order, each once.

    Args:
        names_filter: See the module; None chooses every name.
        names: The names there are.
        disabled: Names that exist but never fire, each with the flag that it waits for.

    Raises:
        HookNameError: A name that does not exist, or a filter that matches nothing.
        HookDisabledError: A name, or a glob's only matches, behind a flag that is off.
    """
    disabled = disabled or {}
    if names_filter is None:
        return list(names)
    if callable(names_filter):
        chosen = {name for name in names if names_filter(name)}
        if not chosen:
            raise HookNameError(
                f"the filter {names_filter!r} matches none of the {len(names)} hook names. "
                "List them with model.hook_names()."
            )
    elif isinstance(names_filter, str):
        chosen = set(_match_text(names_filter, names, disabled))
    elif is_shorthand(names_filter):
        chosen = {expand_shorthand(cast(tuple[Any, ...], names_filter), names, disabled)}
    elif isinstance(names_filter, Iterable):
        chosen = {
            name for each in names_filter for name in match_names(_item(each), names, disabled)
        }
        if not chosen:
            raise HookNameError("an empty list of hook names was given. Pass None for every hook.")
    else:
        raise HookNameError(
            f"{names_filter!r} is no hook name. Pass a name, a glob, a list of them, or a function."
        )
    return [name for name in names if name in chosen]


def is_inside_sae(name: str) -> bool:
    """Whether a hook belongs to an autoencoder that is spliced in."""
    return "hook_sae_" in name and _INSIDE.search(name) is not None


def site_of(name: str) -> str:
    """The model's own hook that a hook is, or that its autoencoder is spliced into.

    >>> site_of("encoder.blocks.0.hook_resid_post.sae2.hook_sae_acts_post")
    'encoder.blocks.0.hook_resid_post'
    """
    return _INSIDE.sub("", name)


def is_shorthand(key: object) -> bool:
    """Whether a key is `(stack, layer, name[, part])` or `(stack, name[, part])`."""
    return isinstance(key, tuple) and len(key) >= 2 and key[0] in _STACKS


def is_exact(key: object) -> bool:
    """Whether a key means one hook: a name without a glob's signs, or shorthand."""
    return is_shorthand(key) or (isinstance(key, str) and not any(sign in key for sign in "*?["))


def expand_shorthand(
    key: tuple[Any, ...],
    names: Collection[str],
    disabled: Mapping[str, str] | None = None,
    n_layers: Mapping[str, int] | None = None,
) -> str:
    """The full name for a shorthand, found among the names there are.

    `name` may leave out `hook_`; `part` is the sublayer (`"attn"`,
    `"cross_attn"`, `"mlp"`, `"ln1"`, ...) and is needed only where several
    have the name, except that attention means self-attention. Layers count
    from the end when negative: from that of `n_layers`, where it says how
    many a stack has, or of the layers that the names tell of.

    Raises:
        HookNameError: No such name, or several.

    >>> expand_shorthand(("encoder", -1, "resid_post"), ["encoder.blocks.0.hook_resid_post"])
    'encoder.blocks.0.hook_resid_post'
    """
    disabled = disabled or {}
    known = [*names, *disabled]
    stack, rest = key[0], list(key[1:])
    layer = rest.pop(0) if rest and isinstance(rest[0], int) else None
    if not 1 <= len(rest) <= 2 or not all(isinstance(part, str) for part in rest):
        raise HookNameError(
            f"{key!r} is no hook shorthand. Write (stack, layer, name), (stack, layer, name, part) "
            "or (stack, name)."
        )
    name = rest[0] if rest[0].startswith("hook_") else f"hook_{rest[0]}"
    part = rest[1] if len(rest) == 2 else None
    prefix = stack
    if layer is not None:
        n = (n_layers or {}).get(stack, count_layers(stack, known))
        prefix = f"{stack}.blocks.{layer + n if 0 > layer >= -n else layer}"
    # Between prefix and name lies one part at most: blocks are never skipped over.
    found = {}
    for full in known:
        if full.startswith(prefix + ".") and full.endswith("." + name):
            between = full[len(prefix) + 1 : -len(name)].rstrip(".")
            if "." not in between and part in (None, between):
                found[between] = full
    if part is None and len(found) > 1:
        found = {each: found[each] for each in ("", "attn") if each in found} or found
    if len(found) > 1 and "" not in found:
        raise HookNameError(
            f"{key!r} could be any of {sorted(found.values())}. Add the part: one of "
            f"{sorted(found)}."
        )
    if not found:
        wanted = ".".join(filter(None, [prefix, part, name]))
        raise HookNameError(explain_miss(wanted, known))
    full = found.get("", next(iter(found.values())))
    _refuse_disabled(full, disabled)
    return full


def _item(each: Any) -> NamesFilter:
    if isinstance(each, str) or callable(each) or is_shorthand(each):
        return cast(NamesFilter, each)
    raise HookNameError(
        f"{each!r} is no hook name. A list of hooks holds names, globs, shorthand or functions."
    )


def _match_text(text: str, names: Collection[str], disabled: Mapping[str, str]) -> list[str]:
    """The names that an exact name or a glob means."""
    if is_exact(text):
        _refuse_disabled(text, disabled)
        if text not in names:
            raise HookNameError(explain_miss(text, names))
        return [text]
    found = fnmatch.filter(names, text)
    if not found:
        for name in fnmatch.filter(disabled, text):
            _refuse_disabled(name, disabled)
        raise HookNameError(explain_miss(text, names))
    return found


def _refuse_disabled(name: str, disabled: Mapping[str, str]) -> None:
    if name in disabled:
        raise HookDisabledError(
            f"{name!r} fires only while {disabled[name]} is on; it is off. "
            f"Turn it on with model.set_{disabled[name]}(True)."
        )


def count_layers(stack: str, names: Iterable[str]) -> int:
    """Layers of a stack that names tell of."""
    layers = [
        int(found[2]) for name in names if (found := _BLOCK.match(name)) and found[1] == stack
    ]
    return max(layers, default=-1) + 1


def explain_miss(wanted: str, names: Collection[str]) -> str:
    """What is wrong with a name, and the nearest names there are."""
    what = "no hook" if is_exact(wanted) else "no hook matches"
    block = _BLOCK.match(wanted)
    n_layers = count_layers(block[1], names) if block else 0
    if block and not 0 <= int(block[2]) < n_layers:
        have = f"{block[1]} blocks 0 to {n_layers - 1}" if n_layers else f"no {block[1]} blocks"
        return (
            f"{what} {wanted!r}: there are {have}. "
            f'List names with model.hook_names("{block[1]}.*").'
        )
    if is_inside_sae(wanted) and site_of(wanted) in names and is_exact(wanted):
        return f"{what} {wanted!r}: no SAE is spliced in there. Add one with model.add_sae(sae)."
    near = difflib.get_close_matches(wanted, list(names), n=3, cutoff=0.5)
    if not near and "." not in wanted:
        near = [name for name in names if name.split(".")[-1].removeprefix("hook_") == wanted][:3]
    hint = f"Nearest: {', '.join(near)}. " if near else ""
    return f"{what} {wanted!r}. {hint}List names with model.hook_names()."


def axis_lengths(cfg: HookedWhisperConfig, name: str) -> dict[str, int | None]:
    """The length of each axis that a hook may have; None where it depends on the input."""
    base, stack = site_of(name), stack_of(name)
    n_pos = None if stack == "decoder" else cfg.n_audio_ctx
    sizes: dict[str, int | None] = {
        "mel": cfg.n_mels,
        "frame": cfg.n_frames,
        "pos": n_pos,
        "query": n_pos,
        "key": cfg.n_audio_ctx if "cross" in name else n_pos,
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
    return sizes
