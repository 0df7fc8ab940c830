"""A hooked encoder-decoder: hook names, hooks that stay or go, caches, autoencoders."""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformer_lens import HookedRootModule

from hooked_whisper.config import HookedWhisperConfig
from hooked_whisper.errors import CacheError, HookNameError, shown
from hooked_whisper.hooks import splicing
from hooked_whisper.hooks.attached import AttachedHooks, TemporaryHooks
from hooked_whisper.hooks.cache import WhisperCache
from hooked_whisper.hooks.collector import (
    Collector,
    Index,
    StepCollector,
    check_fired,
    run_backward,
)
from hooked_whisper.hooks.names import NamesFilter, axis_lengths, count_layers, match_names
from hooked_whisper.hooks.points import Direction, HookPoint, Scope, is_watched
from hooked_whisper.hooks.splice import Splice
from hooked_whisper.hooks.splicing import SAEs
from hooked_whisper.interrupts import Temporarily

Hook = tuple[NamesFilter, Callable[..., Any]]
"""Where to hook, and the function of `(value, hook)`."""

Model = TypeVar("Model", bound="HookedEncoderDecoder")

_INHERITED = set(
    "add_caching_hooks cache_all cache_some check_and_add_hook check_hooks_to_add context_level "
    "get_caching_hooks is_caching remove_all_hook_fns setup".split()
)
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
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """What the weights are kept in."""
        return next(self.parameters()).dtype

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
        `name` is a hook, also one of an autoencoder that is spliced in; else: HookNameError.
        """
        if name not in self.hook_dict:
            raise HookNameError(f"no hook {shown(name)}; model.hook_names() lists them.")
        point = self.hook_dict[name]
        sizes = {**axis_lengths(self.cfg, name), **point.sizes}
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
        self._attached: list[Splice] = []

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
        fwd_hooks, bwd_hooks = list(fwd_hooks), list(bwd_hooks)
        return Temporarily(
            self,
            lambda: TemporaryHooks(self, fwd_hooks, bwd_hooks, reset_hooks_end, clear_contexts),
        )

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
            output = run_backward(self, *args, **kwargs) if incl_bwd else self(*args, **kwargs)
        check_fired(self, names_filter, collector)
        if isinstance(output, Tensor) and collector.shares_memory(output):
            output = output.clone()
        return output, self._make_cache(collector, *args, **kwargs)

    def _make_cache(
        self, collector: Collector | StepCollector, mel: Any = None, *_: Any, **options: Any
    ) -> WhisperCache:
        """What was collected, in the model's order, and how much of its mel holds sound."""
        found = collector.tensors
        names = dict.fromkeys(name for name in (*self.hook_dict, *found) if name in found)
        return WhisperCache(
            {name: found[name] for name in names},
            collector.axes,
            getattr(mel, "n_frames", None),
            self.layer_counts(),
        )

    def layer_counts(self) -> dict[str, int]:
        """Layers of each stack."""
        return {stack: count_layers(stack, self.hook_dict) for stack in ("encoder", "decoder")}

    # Autoencoders

    def add_sae(
        self,
        sae: Any,
        hook_name: NamesFilter = None,
        use_error_term: bool | None = None,
        *,
        speech_only: bool = False,
        hook_name_out: str | None = None,
    ) -> None:
        """Splice an autoencoder in, until SAEs are reset; behind those that are there already.

        Args:
            sae: Anything with `encode` and `decode`, on any leading axes.
            hook_name: Where: a name, or a filter for several sites; None is
                the hook that the autoencoder says it was trained on. At
                `[... head d_head]` sites it may read one head's width or all heads' together.
            use_error_term: Add what it fails to reconstruct, so that without
                edits nothing changes; None is its own `use_error_term`, or False.
            speech_only: In the encoder, leave the positions alone that are
                padding, behind `Mel.n_positions`. Of a plain tensor: those of
                mel frames that equal the window's last one, to its end.
            hook_name_out: For a transcoder, the hook whose activation it
                replaces, while it reads that of `hook_name`. Its hook points are there.
                Needed where `hook_name` is not the one that its configuration names.

        Raises:
            HookNameError: No such hook, or one behind a flag that is off.
            SpliceError: It does not fit there. Nothing was attached.
        """
        pair = (hook_name, sae)
        splices = splicing.prepare(self, [pair], use_error_term, speech_only, hook_name_out)
        splicing.attach(self, splices)

    def reset_saes(self, names: NamesFilter = None) -> None:
        """Take out all autoencoders, or those at some sites; hooks on the sites themselves stay.

        Raises:
            HookNameError: No such hook.
        """
        sites = set(self.hook_names(names))
        splicing.detach(self, [each for each in self._attached if each.site.hook_out in sites])

    @property
    def acts_to_saes(self) -> dict[str, list[Any]]:
        """The autoencoders at each site that has any, in the order in which they act."""
        found: dict[str, list[Any]] = {}
        for each in self._attached:
            found.setdefault(each.site.hook_out, []).append(each.site.sae)
        return found

    def saes(
        self: Model, saes: SAEs, use_error_term: bool | None = None, *, speech_only: bool = False
    ) -> Temporarily[Model]:
        """Have autoencoders spliced in for the length of a `with` block, however it ends.

        Args:
            saes: Autoencoders by hook name, `{hook_name: sae}`, a list of them
                where several sit at one site in that order; or a list of
                autoencoders that name their hook themselves.
            use_error_term: As in `add_sae`, for all of them.
            speech_only: As in `add_sae`, for those in the encoder.

        Raises:
            SpliceError: One does not fit; none was attached.
            HookError: As in `hooks`, where two threads have the model at once.
        """
        wanted = splicing.pairs_of(saes), use_error_term, bool(speech_only)
        return Temporarily(
            self, lambda: splicing.TemporarySplices(self, splicing.prepare(self, *wanted))
        )

    def run_with_saes(
        self,
        *args: Any,
        saes: SAEs = (),
        use_error_term: bool | None = None,
        speech_only: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Run the model once with autoencoders spliced in.

        Args:
            args, kwargs: What the model is called with: `mel`, `tokens`, `return_type`, ...
            saes: Autoencoders by hook name, or those that name their hook; see `saes`.
            use_error_term: As in `add_sae`, for all of them.
            speech_only: As in `add_sae`, for those in the encoder.

        Returns:
            What the model returned.

        Raises:
            SpliceError: One does not fit; nothing was run.
        """
        with self.saes(saes, use_error_term, speech_only=speech_only):
            return self(*args, **kwargs)

    def run_with_cache_with_saes(
        self,
        *args: Any,
        saes: SAEs = (),
        use_error_term: bool | None = None,
        speech_only: bool = False,
        **kwargs: Any,
    ) -> tuple[Any, WhisperCache]:
        """`run_with_cache` with autoencoders spliced in, whose activations are kept too."""
        with self.saes(saes, use_error_term, speech_only=speech_only):
            return self.run_with_cache(*args, **kwargs)

    def run_with_hooks_with_saes(
        self,
        *args: Any,
        saes: SAEs = (),
        use_error_term: bool | None = None,
        speech_only: bool = False,
        **kwargs: Any,
    ) -> Any:
        """`run_with_hooks` with autoencoders spliced in, whose hook points take hooks too."""
        with self.saes(saes, use_error_term, speech_only=speech_only):
            return self.run_with_hooks(*args, **kwargs)
