"""Where in the model a patched activation enters, so that nothing before it is computed again.

A block adds its sublayers' outputs to the residual stream one after the other.
A patched run therefore equals the base run up to the patched activation, and
can begin at the stream just behind it:

    patched                 begins at
    hook_resid_*            that place, with the patched stream
    hook_attn_out, ...      the stream before it + the patched output
    attn.hook_z             the same, with the output that the patched heads write
    mlp.hook_post           the same, with the output that the patched neurons write
    anything else           the stream before its sublayer, with a hook that patches
    ....hook_sae_*          as the activation that the autoencoder takes the place of,
                            with a hook that patches inside
"""

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from hooked_whisper.config import HookedWhisperConfig, Stack
from hooked_whisper.hooks.names import is_inside_sae, site_of, stack_of

Kind = Literal["resid", "output", "z", "post", "hook", "start"]
Sublayer = Literal["attn", "cross_attn", "mlp"]

_STAGES: dict[Stack, tuple[str, ...]] = {
    "encoder": ("hook_resid_pre", "hook_resid_mid"),
    "decoder": ("hook_resid_pre", "hook_resid_mid", "hook_resid_mid_cross"),
}
_SUBLAYERS: dict[Stack, tuple[Sublayer, ...]] = {
    "encoder": ("attn", "mlp"),
    "decoder": ("attn", "cross_attn", "mlp"),
}
_OUTPUTS = {"hook_attn_out": "attn", "hook_cross_attn_out": "cross_attn", "hook_mlp_out": "mlp"}
_NORMS: dict[Stack, dict[str, Sublayer]] = {
    "encoder": {"ln1": "attn", "ln2": "mlp"},
    "decoder": {"ln1": "attn", "ln2": "cross_attn", "ln3": "mlp"},
}


class Stop(NamedTuple):
    """A place on the residual stream of a stack, in the order of computing.

    Args:
        layer: The block; one more than the last is the end of the stack.
        stage: 0 is before `hook_resid_pre`, 1 behind it, 2 behind
            `hook_resid_mid`, 3 behind `hook_resid_mid_cross`.
    """

    layer: int
    stage: int


@dataclass(frozen=True)
class Entry:
    """How a patch at one hook enters.

    Args:
        name: The hook.
        stack: Its stack.
        kind: See the module.
        stop: Where on the stream the patched run begins.
        base: The name of the stream that the base run gives to it, if any.
        sublayer: The part of the block that the hook belongs to.
    """

    name: str
    stack: Stack
    kind: Kind
    stop: Stop
    base: str | None = None
    sublayer: Sublayer | None = None

    @property
    def site(self) -> str:
        """The model's own hook that it is, or that its autoencoder is spliced into."""
        return site_of(self.name)

    @property
    def layer(self) -> int:
        """The block that the hook is in; the last one for what lies behind the blocks."""
        return int(self.name.split(".")[2]) if ".blocks." in self.name else self.stop.layer

    @property
    def shares_audio(self) -> bool:
        """Whether all patched rows read the base run's cross-attention keys and values."""
        is_key = self.sublayer == "cross_attn" and self.site.endswith(("hook_k", "hook_v"))
        return not (is_key or self.site.endswith(("cross_k_input", "cross_v_input")))


def find_entry(name: str, cfg: HookedWhisperConfig, from_start: bool = False) -> Entry:
    """How a patch at this hook enters.

    Args:
        name: The hook, of the model or of an autoencoder that is spliced in.
        cfg: The model's configuration.
        from_start: Run the whole stack again, whatever is patched.
    """
    if is_inside_sae(name):
        return replace(find_entry(site_of(name), cfg, from_start), name=name)
    entry = _find_entry(name, cfg)
    return replace(entry, kind="start", stop=Stop(0, 0), base=None) if from_start else entry


def _find_entry(name: str, cfg: HookedWhisperConfig) -> Entry:
    stack = stack_of(name)
    n_layers = cfg.n_layers(stack)
    parts = name.split(".")
    if parts[1] != "blocks":
        if parts[1] == "ln_final" or parts[-1] == "hook_logits":
            end = f"{stack}.blocks.{n_layers - 1}.hook_resid_post"
            return Entry(name, stack, "hook", Stop(n_layers, 0), end)
        return Entry(name, stack, "start", Stop(0, 0))

    layer, rest = int(parts[2]), ".".join(parts[3:])
    if rest == "hook_resid_post":
        return Entry(name, stack, "resid", Stop(layer + 1, 0))
    if rest in _STAGES[stack]:
        return Entry(name, stack, "resid", Stop(layer, 1 + _STAGES[stack].index(rest)))

    sublayer = _sublayer_of(stack, rest)
    number = _SUBLAYERS[stack].index(sublayer)
    before = f"{stack}.blocks.{layer}.{_STAGES[stack][number]}"
    is_last = number + 1 == len(_SUBLAYERS[stack])
    behind = Stop(layer + 1, 0) if is_last else Stop(layer, 2 + number)
    if rest in _OUTPUTS:
        return Entry(name, stack, "output", behind, before, sublayer)
    if rest == f"{sublayer}.hook_z":
        return Entry(name, stack, "z", behind, before, sublayer)
    if rest == "mlp.hook_post":
        return Entry(name, stack, "post", behind, before, sublayer)
    return Entry(name, stack, "hook", Stop(layer, 1 + number), before, sublayer)


def _sublayer_of(stack: Stack, rest: str) -> Sublayer:
    """The sublayer that a hook of a block belongs to."""
    first = rest.split(".")[0]
    if first in _SUBLAYERS[stack]:
        return first
    if first in _NORMS[stack]:
        return _NORMS[stack][first]
    if "mlp" in first:
        return "mlp"
    return "cross_attn" if "cross" in first else "attn"
