"""What any hooked encoder-decoder has: hook names, temporary and lasting hooks, caching."""

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformer_lens import HookedRootModule

from hooked_whisper.config import HookedWhisperConfig
from hooked_whisper.errors import CacheError, HookError, HookNameError
from hooked_whisper.hooks.attached import AttachedHooks, TemporaryHooks
from hooked_whisper.hooks.cache import WhisperCache
from hooked_whisper.hooks.collector import Collector, Index, StepCollector
from hooked_whisper.hooks.names import (
    NamesFilter,
    count_layers,
    is_exact,
    match_names,
    site_of,
    stack_of,
)
from hooked_whisper.hooks.points import Direction, HookPoint, Scope, is_watched
from hooked_whisper.interrupts import Temporarily

Hook = tuple[NamesFilter, Callable[..., Any]]
"""Where to hook, and the function of `(value, hook)`."""


Model = TypeVar("Model", bound="HookedEncoderDecoder")

_INHERITED = {
    "add_caching_hooks",
    "cache_all",
    "cache_some",
    "check_and_add_hook",
    "check_hooks_to_add",
    "context_level",
    "get_caching_hooks",
    "is_caching",
    "remove_all_hook_fns",
    "setup",
}
"""What TransformerLens's root module has for itself, or from before `run_with_cache`."""


class HookedEncoderDecoder(HookedRootModule):
    """A model of an encoder and a decoder whose activations can be read and edited by name.

    A subclass builds its modules with `HookPoint`s in them and calls `setup()`
    at the end of its constructor. Names are then the tree's own paths.
    """

    cfg: HookedWhisperConfig
    encoder: nn.Module
    decoder: nn.Module
    hook_dict: dict[str, HookPoint]  # type: ignore[assignment]

    def __dir__(self) -> list[str]:
        """The names that editors offer: without what TransformerLens calls inside."""
        return sorted({*super().__dir__()} - _INHERITED)

    @property
    def _disabled(self) -> dict[str, str]:
        """Hook points that never fire, by name, each with the flag that it waits for."""
        return {
            name: point.flag or "" for name, point in self.hook_dict.items() if not point.enabled
        }

    def hook_names(self, names_filter: NamesFilter = None) -> list[str]:
        """The names of the hooks that fire, in the model's order, or those that a filter matches.

        Raises:
            HookNameError: Nothing has that name, or matches.
            HookDisabledError: What matches is behind a flag that is off.
        """
        enabled = [name for name, point in self.hook_dict.items() if point.enabled]
        return match_names(names_filter, enabled, self._disabled)

    def axis_sizes(self, name: str) -> tuple[int | None, ...]:
        """The length of each axis of an activation; None where it depends on the input.

        That is the batch and, in the decoder, the positions and the keys of self-attention.

        Args:
            name: A hook, also one of an autoencoder that is spliced in.
        """
        cfg, point = self.cfg, self.hook_dict[name]
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
        sizes |= point.sizes
        return tuple(sizes.get(axis) for axis in point.axes)

    def add_hook(
        self,
        name: NamesFilter,
        hook: Callable[..., Any],
        dir: Direction = "fwd",
        is_permanent: bool = False,
        level: int | None = None,
        prepend: bool = False,
    ) -> None:
        """Attach a function to every hook that a name or filter chooses, until hooks are reset.

        Raises:
            HookNameError: Nothing has that name, or matches; nothing was attached.
        """
        names = self.hook_names(name)
        options = {"is_permanent": is_permanent, "level": level, "prepend": prepend}
        attached = AttachedHooks()
        try:
            for each in names:
                attached.add(self.hook_dict[each], hook, dir, **options)
        except BaseException:
            attached.remove()
            raise

    def add_perma_hook(
        self, name: NamesFilter, hook: Callable[..., Any], dir: Direction = "fwd"
    ) -> None:
        """Attach a function that `reset_hooks()` leaves, unless told otherwise."""
        self.add_hook(name, hook, dir, is_permanent=True)

    def setup(self) -> None:
        super().setup()
        self._scopes: list[Scope] = []

    def hooks(  # type: ignore[override]  # more than a generator's
        self: Model,
        fwd_hooks: Iterable[Hook] = (),
        bwd_hooks: Iterable[Hook] = (),
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
    ) -> Temporarily[Model]:
        """Have functions attached for the length of a `with` block, however it ends.

        They act in the thread that runs the block; another one that runs the model
        meanwhile is told so. The arguments are those of `run_with_hooks`.

        Raises:
            HookNameError: A name that matches nothing; nothing was attached.
            HookError: Another thread has hooks or autoencoders attached for a while, or,
                in the other thread: this one has.
        """
        return Temporarily(
            self,
            lambda: TemporaryHooks(self, fwd_hooks, bwd_hooks, reset_hooks_end, clear_contexts),
        )

    def _open_scope(self, scope: Scope) -> None:
        """Have the model for this thread for a while.

        Raises:
            HookError: Another one has it.
        """
        for other in list(self._scopes):
            other.check("the model")
        scope.thread = threading.get_ident()
        self._scopes.append(scope)

    def _close_scope(self, scope: Scope) -> None:
        """Give it back; what is still attached then stays, for every thread."""
        scope.thread = None
        self._scopes = [each for each in self._scopes if each is not scope]

    def run_with_hooks(
        self,
        *args: Any,
        fwd_hooks: Iterable[Hook] = (),
        bwd_hooks: Iterable[Hook] = (),
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Run the model once with functions attached, which read activations or replace them.

        Args:
            args, kwargs: What the model is called with: `mel`, `tokens`, `return_type`, ...
            fwd_hooks: Pairs of a name, glob, list or function of names, and a
                function of `(value, hook)` whose result replaces the value.
            bwd_hooks: The same, on gradients; they act on the backward pass of what
                this returns, also when they have been taken from the model by then.
            reset_hooks_end: Take them away at the end.
            clear_contexts: Empty the hooks' contexts at the end too.

        Returns:
            What the model returned.

        Raises:
            HookNameError: A name that matches nothing; nothing was run.

        For instance, what is lost without one MLP:

            def silence(value, hook):
                return torch.zeros_like(value)

            name = "encoder.blocks.0.hook_mlp_out"
            logits = model.run_with_hooks(mel, tokens, fwd_hooks=[(name, silence)])
        """
        with self.hooks(fwd_hooks, bwd_hooks, reset_hooks_end, clear_contexts):
            return self(*args, **kwargs)

    def run_with_cache(  # type: ignore[override]  # more kinds of filter
        self,
        *args: Any,
        names_filter: NamesFilter = None,
        fwd_hooks: Iterable[Hook] = (),
        bwd_hooks: Iterable[Hook] = (),
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        remove_batch_dim: bool = False,
        incl_bwd: bool = False,
        pos_slice: Index | None = None,
        frame_slice: Index | None = None,
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
        **kwargs: Any,
    ) -> tuple[Any, WhisperCache]:
        """Run the model once and keep its activations, as they are after all hooks.

        For instance, where the decoder looks:

            logits, cache = model.run_with_cache(mel, tokens, names_filter="*.hook_pattern")
            pattern = cache["decoder", 2, "pattern", "cross_attn"]  # [batch head query key]

        Args:
            args, kwargs: What the model is called with: `mel`, `tokens`, `return_type`, ...
            names_filter: Which activations; None keeps all. Attention scores,
                patterns and LayerNorm scales cost time in the layers in which
                they are asked for.
            fwd_hooks: Functions to attach for this run.
            bwd_hooks: The same, on gradients.
            device: Where to keep the activations; None keeps them where they are.
            dtype: What to keep them in, to save memory; None leaves them.
            remove_batch_dim: Drop the batch axis, which must be 1.
            incl_bwd: Run the backward pass of the output, which must be one
                number (`return_type="loss"`), and keep each activation's
                gradient as `name_grad`. Parameters get no gradients.
            pos_slice: Decoder positions to keep.
            frame_slice: Encoder positions (20 ms each) to keep.
            reset_hooks_end: Take the attached functions away at the end.
            clear_contexts: Empty the hooks' contexts at the end too.

        Returns:
            What the model returned, and the cache.

        Raises:
            HookNameError: A name that matches nothing, or that did not fire
                in this run, which had no tokens or stopped before it.
            CacheError: A batch axis that is not 1, positions that do not
                exist, or gradients of an output that is not one number.
        """
        names = self.hook_names(names_filter)
        if incl_bwd and torch.is_inference_mode_enabled():
            raise CacheError("incl_bwd needs gradients; leave torch.inference_mode() for it.")
        fwd_hooks, bwd_hooks = list(fwd_hooks), list(bwd_hooks)
        collector = Collector(
            copy=bool(fwd_hooks or bwd_hooks) or is_watched(*self.hook_dict.values()),
            with_gradients=incl_bwd,
            device=device,
            dtype=dtype,
            remove_batch_dim=remove_batch_dim,
            pos_slice=pos_slice,
            frame_slice=frame_slice,
        )
        caching = [(names, collector)] if names else []
        with self.hooks([*fwd_hooks, *caching], bwd_hooks, reset_hooks_end, clear_contexts):
            if incl_bwd:
                output = self._run_backward(*args, **kwargs)
            else:
                output = self(*args, **kwargs)
        self._check_fired(names_filter, collector)
        if isinstance(output, Tensor) and collector.shares_memory(output):
            output = output.clone()
        return output, self._make_cache(collector, *args, **kwargs)

    def _make_cache(
        self, collector: Collector | StepCollector, *args: Any, **kwargs: Any
    ) -> WhisperCache:
        """What was collected, in the model's order; subclasses may know more of their input."""
        found = collector.tensors
        names = dict.fromkeys(name for name in (*self.hook_dict, *found) if name in found)
        tensors = {name: found[name] for name in names}
        return WhisperCache(tensors, collector.axes, n_layers=self.layer_counts())

    def layer_counts(self) -> dict[str, int]:
        """Layers of each stack."""
        return {stack: count_layers(stack, self.hook_dict) for stack in ("encoder", "decoder")}

    def _check_fired(self, names_filter: NamesFilter, collector: Collector) -> None:
        """Refuse to leave out in silence what was asked for by name, or to return nothing."""
        if names_filter is None:
            return
        asked: list[Any] = [names_filter]
        if isinstance(names_filter, (list, tuple, set)) and not is_exact(names_filter):
            asked = list(names_filter)
        exact = [name for each in asked if is_exact(each) for name in self.hook_names(each)]
        missing = [name for name in exact if name not in collector.tensors]
        if missing or not collector.tensors:
            what = repr(missing[0]) if missing else f"none of {names_filter!r}"
            raise HookNameError(
                f"{what} did not fire in this run. The decoder's hooks need tokens, and those "
                "behind stop_at_layer never run."
            )

    def _run_backward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Run forward and backward without leaving gradients on the parameters."""
        needed = [parameter for parameter in self.parameters() if parameter.requires_grad]
        with torch.enable_grad(), frozen(needed):
            output = self(*args, **kwargs)
            if not isinstance(output, Tensor) or output.numel() != 1:
                shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
                raise CacheError(
                    f"incl_bwd needs one number to start from; the model returned {shape}. "
                    'Pass return_type="loss".'
                )
            output.backward()
        return output.detach()

    def _resolve(self, hooks: Iterable[Hook]) -> list[Any]:
        """Each function with every single name that it goes to, all checked before any is used."""
        resolved = []
        for pair in hooks:
            if not isinstance(pair, Sequence) or len(pair) != 2 or not callable(pair[1]):
                raise HookError(
                    f"{pair!r} is no hook. Pass pairs of a name and a function of (value, hook)."
                )
            resolved += [(name, pair[1]) for name in self.hook_names(pair[0])]
        return resolved


@dataclass
class _Freezing:
    """The work of `frozen`."""

    parameters: list[nn.Parameter]

    def begin(self) -> None:
        for parameter in self.parameters:
            parameter.requires_grad_(False)

    def end(self) -> None:
        for parameter in self.parameters:
            parameter.requires_grad_(True)


def frozen(parameters: list[nn.Parameter]) -> Temporarily[None]:
    """Parameters that need no gradients for the length of a `with` block."""
    return Temporarily(None, lambda: _Freezing(parameters))
