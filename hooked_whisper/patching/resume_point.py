"""Where on the residual stream patched rows resume, so that nothing before it is computed again.

A block adds its sublayers' outputs to the residual stream one after the other.
A patched run therefore equals the base run up to the patched activation, and
can resume at the stream just behind it:

    patched                 resumes at
    hook_resid_*            that place, with the patched stream
    hook_attn_out, ...      the stream before it + the patched output
    attn.hook_z             the same, with the output that the patched heads write
    mlp.hook_post           the same, with the output that the patched neurons write
    anything else           the stream before its sublayer, with a hook that patches
    ....hook_sae_*          as the activation that the autoencoder takes the place of,
                            with a hook that patches inside
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from hooked_whisper.config import HookedWhisperConfig, Stack
from hooked_whisper.hooks.names import is_inside_sae, site_of, stack_of
from hooked_whisper.hooks.points import HookPoint, is_watched
from hooked_whisper.hooks.splice import Splice
from hooked_whisper.interventions.edits import HookPair, SiteEdit
from hooked_whisper.model.blocks import ALL, DecoderBlock, Step
from hooked_whisper.model.kv_cache import KVCache
from hooked_whisper.model.whisper import HookedWhisper

Kind = Literal["resid", "output", "z", "post", "hook", "start"]
Sublayer = Literal["attn", "cross_attn", "mlp"]

_STREAMS: dict[Stack, tuple[str, ...]] = {
    "encoder": ("hook_resid_pre", "hook_resid_mid"),
    "decoder": ("hook_resid_pre", "hook_resid_mid", "hook_resid_mid_cross"),
}
"""The stream before each sublayer."""
_SUBLAYERS: dict[Stack, tuple[Sublayer, ...]] = {
    "encoder": ("attn", "mlp"),
    "decoder": ("attn", "cross_attn", "mlp"),
}
_OUTPUTS = {"hook_attn_out": "attn", "hook_cross_attn_out": "cross_attn", "hook_mlp_out": "mlp"}
_NORMS: dict[Stack, dict[str, Sublayer]] = {
    "encoder": {"ln1": "attn", "ln2": "mlp"},
    "decoder": {"ln1": "attn", "ln2": "cross_attn", "ln3": "mlp"},
}


class StreamPosition(NamedTuple):
    """A place on the residual stream of a stack, in the order of computing.

    Args:
        layer: The block; one more than the last is the end of the stack.
        step: The next of the block's `steps` to be taken: 0 is before
            `hook_resid_pre`, 1 behind it, 2 behind `hook_resid_mid`, 3 behind
            `hook_resid_mid_cross`.
    """

    layer: int
    step: int


@dataclass(frozen=True)
class ResumePoint:
    """How a run that is patched at one hook resumes.

    Args:
        name: The hook.
        stack: Its stack.
        kind: See the module.
        position: Where on the stream the patched run resumes.
        base: The name of the stream that the base run gives to it, if any.
        sublayer: The part of the block that the hook belongs to.
    """

    name: str
    stack: Stack
    kind: Kind
    position: StreamPosition
    base: str | None = None
    sublayer: Sublayer | None = None

    @property
    def site(self) -> str:
        """The model's own hook that it is, or that its autoencoder is spliced into."""
        return site_of(self.name)

    @property
    def layer(self) -> int:
        """The block that the hook is in; the last one for what lies behind the blocks."""
        return int(self.name.split(".")[2]) if ".blocks." in self.name else self.position.layer

    @property
    def needs_hook(self) -> bool:
        """Whether nothing but a hook can patch it."""
        return self.kind in ("hook", "start")

    @property
    def shares_audio(self) -> bool:
        """Whether all patched rows read the base run's cross-attention keys and values."""
        is_key = self.sublayer == "cross_attn" and self.site.endswith(("hook_k", "hook_v"))
        return not (is_key or self.site.endswith(("cross_k_input", "cross_v_input")))

    def stream_behind(self, block: Any, resid: Tensor, patched: Tensor) -> Tensor:
        """The stream behind the sublayer, from that before it and what was patched in the sublayer.

        Args:
            block: The block.
            resid: The stream before the sublayer.
            patched: What the heads read, the neurons hold, or the sublayer writes.
        """
        if self.sublayer == "mlp":
            if self.kind == "post":
                patched = block.hook_mlp_out(block.mlp.fc_out(patched))
            return block.hook_resid_post(resid + patched)
        cross = "cross_" if self.sublayer == "cross_attn" else ""
        if self.kind == "z":
            written = getattr(block, f"{cross}attn").write(patched)
            patched = getattr(block, f"hook_{cross}attn_out")(written)
        behind = block.hook_resid_mid_cross if cross else block.hook_resid_mid
        return behind(resid + patched)

    def row_floats(
        self, cfg: HookedWhisperConfig, start: int, n_pos: int, n_latents: int = 0
    ) -> int:
        """About how many numbers a row holds at once, as measured, while it runs."""
        n_query, n_audio = n_pos - start, cfg.n_audio_ctx
        floats = n_query * (8 * cfg.d_model + 2 * cfg.d_mlp)
        if self.stack == "encoder":
            n_query = n_audio
            floats += n_audio * (12 * cfg.d_model + 3 * cfg.d_mlp)
        floats += 4 * n_query * n_latents
        if self.site.endswith(("hook_attn_scores", "hook_pattern")):
            reads_text = self.stack == "decoder" and self.sublayer == "attn"
            floats += 4 * cfg.n_heads(self.stack) * n_query * (n_pos if reads_text else n_audio)
        if not self.shares_audio:
            floats += 4 * n_audio * cfg.d_model
        return floats


def find_resume_point(name: str, cfg: HookedWhisperConfig, from_start: bool = False) -> ResumePoint:
    """Where a run resumes that is patched at this hook."""
    if is_inside_sae(name):
        return replace(find_resume_point(site_of(name), cfg, from_start), name=name)
    point = _find(name, cfg)
    if from_start:
        return replace(point, kind="start", position=StreamPosition(0, 0), base=None)
    return point


def _find(name: str, cfg: HookedWhisperConfig) -> ResumePoint:
    stack = stack_of(name)
    n_layers = cfg.n_layers(stack)
    parts = name.split(".")
    if parts[1] != "blocks":
        if parts[1] == "ln_final" or parts[-1] == "hook_logits":
            end = f"{stack}.blocks.{n_layers - 1}.hook_resid_post"
            return ResumePoint(name, stack, "hook", StreamPosition(n_layers, 0), end)
        return ResumePoint(name, stack, "start", StreamPosition(0, 0))

    layer, rest = int(parts[2]), ".".join(parts[3:])
    behind_block = StreamPosition(layer + 1, 0)
    if rest == "hook_resid_post":
        return ResumePoint(name, stack, "resid", behind_block)
    if rest in _STREAMS[stack]:
        position = StreamPosition(layer, 1 + _STREAMS[stack].index(rest))
        return ResumePoint(name, stack, "resid", position)

    sublayer = _sublayer_of(stack, rest)
    number = _SUBLAYERS[stack].index(sublayer)
    base = f"{stack}.blocks.{layer}.{_STREAMS[stack][number]}"
    is_last = number + 1 == len(_SUBLAYERS[stack])
    behind = behind_block if is_last else StreamPosition(layer, 2 + number)
    if rest in _OUTPUTS:
        return ResumePoint(name, stack, "output", behind, base, sublayer)
    if rest == f"{sublayer}.hook_z":
        return ResumePoint(name, stack, "z", behind, base, sublayer)
    if rest == "mlp.hook_post":
        return ResumePoint(name, stack, "post", behind, base, sublayer)
    return ResumePoint(name, stack, "hook", StreamPosition(layer, 1 + number), base, sublayer)


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


def decoder_steps(
    block: DecoderBlock, encoder_output: Tensor, cache: KVCache | None, queries: slice = ALL
) -> list[Step]:
    """A decoder block's steps, of which cross-attention takes the shorter way where none looks on.

    Rows of one recording attend to it as one row's queries; few queries of a recording whose
    keys and values nobody has yet read its encoder output itself.
    """
    steps: list[Step] = block.steps(encoder_output, cache, queries)
    if is_watched(*block.modules()):
        return steps
    attend, attention = steps[2], block.cross_attn
    most = encoder_output.shape[2] // attention.n_heads if encoder_output.dtype in _EXACT else 0

    def cross_attend(resid: Tensor) -> Tensor:
        if cache is None and resid.shape[1] <= most:
            return resid + attention.write_from(block.ln2(resid), encoder_output)
        if len(encoder_output) == 1:
            return attend(resid.flatten(0, 1)[None]).view(resid.shape)
        return attend(resid)

    steps[2] = cross_attend
    return steps


_EXACT = (torch.float32, torch.float64)
"""What another order of products changes in its last digits alone."""


def run_blocks_with_joins(
    blocks: Sequence[Sequence[Step]], joins: dict[StreamPosition, Tensor]
) -> Tensor:
    """The last residual stream of rows that join it, each at its position."""
    resid: Tensor | None = None
    for layer, steps in enumerate([*blocks, [lambda resid: resid]]):
        for number, step in enumerate(steps):
            joining = joins.get(StreamPosition(layer, number))
            if joining is not None:
                resid = joining if resid is None else torch.cat([resid, joining])
            resid = None if resid is None else step(resid)
    assert resid is not None
    return resid


def join_rows(streams: list[Tensor]) -> Tensor:
    """Some streams' rows in one; a single one is not copied."""
    return streams[0] if len(streams) == 1 else torch.cat(streams)


def output_name(model: HookedWhisper, name: str) -> str:
    """The hook that sees what comes out of another: behind its autoencoders, if it has any."""
    splices = [each for each in model.hook_dict[name].splices if isinstance(each, Splice)]
    return str(splices[-1].points["output"].name) if splices else name


@dataclass(frozen=True, eq=False)
class PatchedRow:
    """One row: an edit of one hook's activation, which treats rows alike.

    Args:
        point: Where it resumes.
        edit: The edit.
        start: The first decoder position that it changes.
        only_pos: The one position that it changes in its block, if it enters behind the
            block's self-attention: the block runs on for that position alone, and the row
            joins the others behind it.
    """

    point: ResumePoint
    edit: SiteEdit
    start: int = 0
    only_pos: int | None = None

    @property
    def position(self) -> StreamPosition:
        """Where it joins other rows."""
        if self.only_pos is None:
            return self.point.position
        return StreamPosition(self.point.layer + 1, 0)

    @property
    def order(self) -> tuple[StreamPosition, str, bool]:
        """Sorts rows into the order in which they join; those of one hook stay together."""
        return self.position, self.point.name, self.only_pos is None


class ResumedRows(NamedTuple):
    """Resumed runs, at the wanted positions that can differ from the base run.

    Args:
        first: How many wanted positions come before the patches.
        resid: The last residual stream at the others.
        logits: The logits there, where hooks had to see them made.
    """

    first: int
    resid: Tensor
    logits: Tensor | None = None


def edit_rows(rows: Sequence[PatchedRow], start: int, value: Tensor, hook: HookPoint) -> None:
    """Edit an activation in place, each row by itself; it begins at decoder position `start`."""
    first_pos = start if str(hook.name).startswith("decoder") else 0
    for number, row in enumerate(rows):
        row.edit.write_to(value[number : number + 1], hook, first_pos)


def hook_of_rows(rows: Sequence[PatchedRow], start: int, first_row: int = 0) -> HookPair:
    """A hook that edits rows of one name, the first of which is row `first_row` in its pass."""

    def function(value: Tensor, hook: HookPoint) -> Tensor:
        value = value.clone()
        edit_rows(rows, start, value[first_row : first_row + len(rows)], hook)
        return value

    return rows[0].point.name, function
