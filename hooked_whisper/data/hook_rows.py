"""Hooks as rows: what a row of each is, and how far the model has to run for them.

A row is one place in time or in the text. There are three kinds:

    encoder   an encoder position, 20 ms
    frame     a mel frame, 10 ms (the mel itself and the first convolution)
    decoder   a token
"""

from dataclasses import dataclass
from math import prod
from typing import Literal, get_args

from hooked_whisper.config import FRAMES_PER_SECOND, POSITION_S, HookedWhisperConfig, Stack
from hooked_whisper.errors import StoreError
from hooked_whisper.hooks.names import NamesFilter, stack_of
from hooked_whisper.model.whisper import HookedWhisper

RowKind = Literal["encoder", "frame", "decoder"]
ROW_KINDS: tuple[RowKind, ...] = get_args(RowKind)

SECONDS_PER_ROW = {
    "encoder": POSITION_S,
    "frame": 1 / FRAMES_PER_SECOND,
}


@dataclass(frozen=True)
class RowHook:
    """A hook whose activation becomes rows.

    Args:
        name: The hook.
        kind: What a row of it is.
        row_axis: The axis that rows are along, in the activation.
        widths: The other axes but the batch: upper bounds, from the configuration.
    """

    name: str
    kind: RowKind
    row_axis: int
    widths: tuple[int, ...]


@dataclass(frozen=True)
class RowHooks:
    """Hooks whose activations become rows, in the model's order.

    Args:
        each: The hooks.
        stop_encoder: The first block of the encoder not to run; None runs all of it.
        stop_decoder: The same of the decoder.
    """

    each: tuple[RowHook, ...]
    stop_encoder: int | None
    stop_decoder: int | None

    @property
    def names(self) -> list[str]:
        """The hooks' names."""
        return [hook.name for hook in self.each]

    @property
    def needs_tokens(self) -> bool:
        """Whether the decoder runs."""
        return any(hook.name.startswith("decoder.") for hook in self.each)

    @property
    def kinds(self) -> tuple[RowKind, ...]:
        """The kinds of rows there are."""
        return tuple(kind for kind in ROW_KINDS if any(hook.kind == kind for hook in self.each))

    def window_bytes(self, cfg: HookedWhisperConfig, itemsize: int) -> int:
        """Bytes of the rows of one full window, at most."""
        n_rows = {"encoder": cfg.n_audio_ctx, "frame": cfg.n_frames, "decoder": cfg.n_text_ctx}
        return sum(n_rows[hook.kind] * prod(hook.widths) * itemsize for hook in self.each)


def choose_hooks(model: HookedWhisper, hooks: NamesFilter) -> RowHooks:
    """The hooks that names or globs choose, each with what its rows are.

    Raises:
        HookNameError: A name that the model does not have.
        StoreError: A hook whose rows have no fixed width.
    """
    names = model.hook_names(hooks)
    each = tuple(_row_hook(model, name) for name in names)
    decoder = [name for name in names if name.startswith("decoder.")]
    encoder = [name for name in names if name.startswith("encoder.")]
    return RowHooks(
        each,
        stop_encoder=None if decoder else _stop(encoder, "encoder"),
        stop_decoder=_stop(decoder, "decoder") if decoder else None,
    )


def _row_hook(model: HookedWhisper, name: str) -> RowHook:
    axes, stack = model.hook_dict[name].axes, stack_of(name)
    row = next((axis for axis in ("frame", "pos", "query", "key") if axis in axes), None)
    is_self = stack == "decoder" and ".cross_attn." not in name
    if row is None or (row == "query" and is_self):
        raise StoreError(
            f"{name!r} has the axes {axes}: its rows are as wide as the text is long, which "
            "differs. Store other hooks, or read this one with model.run_with_cache."
        )
    kind: RowKind = "frame" if row == "frame" else "encoder" if row == "key" else stack
    sizes = dict(zip(axes, model.axis_sizes(name), strict=True))
    widths = tuple(sizes[axis] or 0 for axis in axes if axis not in ("batch", row))
    return RowHook(name, kind, axes.index(row), widths)


def _stop(names: list[str], stack: Stack) -> int | None:
    """The first block that no hook needs; None where the stack runs to its end."""
    behind = (f"{stack}.ln_final.", f"{stack}.hook_logits")
    if any(name.startswith(behind) for name in names):
        return None
    layers = [int(name.split(".")[2]) for name in names if name.startswith(f"{stack}.blocks.")]
    return max(layers, default=-1) + 1
