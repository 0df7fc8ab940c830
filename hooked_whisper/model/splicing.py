"""Plugging sparse autoencoders into a model: SAELens's words, on any hook."""

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import torch

from hooked_whisper.errors import InputError, SpliceError
from hooked_whisper.hooks.cache import WhisperCache
from hooked_whisper.hooks.names import NamesFilter, is_inside_sae, site_of, stack_of
from hooked_whisper.hooks.points import HookPoint, Scope
from hooked_whisper.hooks.root import HookedEncoderDecoder
from hooked_whisper.hooks.splice import Splice
from hooked_whisper.hooks.splice_site import Activation, SpliceSite, configured, fit, site_written
from hooked_whisper.interrupts import Temporarily

SAEs = Mapping[Any, Any] | Iterable[Any]
"""Autoencoders by hook name, several as a list; or autoencoders that name their hook themselves."""


Model = TypeVar("Model", bound="Splicing")


class Splicing(HookedEncoderDecoder):
    """A model in which autoencoders can take the place of activations.

    Each splice has hook points of its own, `{hook_name}.hook_sae_input`,
    `acts_pre`, `acts_post`, `recons`, `error` and `output`, which are read and
    edited like any other; those of a second autoencoder at the same site are
    `{hook_name}.sae2.hook_sae_input` and so on. Hooks on the site itself go on
    firing, and see the activation before the first autoencoder.

    Autoencoders are no part of the model's parameters or state dict, and are
    not moved or converted with it.
    """

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
        splices = self._prepare([(hook_name, sae)], use_error_term, speech_only, hook_name_out)
        try:
            self._attach(splices)
        except BaseException:
            self._detach(splices)
            raise

    def reset_saes(self, names: NamesFilter = None) -> None:
        """Take out all autoencoders, or those at some sites; hooks on the sites themselves stay.

        Raises:
            HookNameError: No such hook.
        """
        sites = set(self.hook_names(names))
        self._detach([each for each in self._attached if each.site.hook_out in sites])

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
        return Temporarily(
            self,
            lambda: _TemporarySplices(
                self, self._prepare(_pairs(saes), use_error_term, speech_only)
            ),
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

    # Attaching

    def setup(self) -> None:
        super().setup()
        self._attached: list[Splice] = []

    def _prepare(
        self,
        pairs: Iterable[tuple[NamesFilter, Any]],
        use_error_term: bool | None,
        speech_only: bool,
        hook_name_out: str | None = None,
    ) -> list[Splice]:
        """Splices that fit, none of them attached yet."""
        has_grad = torch.is_grad_enabled()
        try:
            return self._fitted(pairs, use_error_term, speech_only, hook_name_out)
        except BaseException:  # Ctrl-C may have come before PyTorch's no_grad put this back
            torch.set_grad_enabled(has_grad)
            raise

    def _fitted(
        self,
        pairs: Iterable[tuple[NamesFilter, Any]],
        use_error_term: bool | None,
        speech_only: bool,
        hook_name_out: str | None,
    ) -> list[Splice]:
        prepared: list[Splice] = []
        for names_filter, sae in pairs:
            for name in self.hook_names(_home(sae) if names_filter is None else names_filter):
                site = splice_site(self, sae, name, hook_name_out)
                if speech_only:
                    self._check_speech(site.hook_out)
                use_error = use_error_term
                if use_error is None:
                    use_error = bool(getattr(sae, "use_error_term", False))
                prepared.append(
                    Splice(
                        site,
                        use_error_term=use_error,
                        prefix=_free_prefix(site.hook_out, [*self._attached, *prepared]),
                        speech_only=speech_only,
                    )
                )
        return prepared

    def _check_speech(self, name: str) -> None:
        """Refuse `speech_only` where an activation has no encoder positions."""
        point = self.hook_dict[name]
        if not name.startswith("encoder") or point.axes[1:2] != ("pos",):
            raise SpliceError(
                f"speech_only is for activations of encoder positions; {name!r} has axes "
                f"[{' '.join(point.axes)}]. Leave it out there."
            )

    def _attach(self, splices: list[Splice], scope: Scope | None = None) -> None:
        for splice in splices:
            self._attached.append(splice)
            for point in self._points_of(splice):
                if scope is not None:
                    point.scopes.append(scope)
            if splice.reader is not None:
                self.hook_dict[splice.site.hook_in].splices.append(splice.reader)
            self.hook_dict[splice.site.hook_out].splices.append(splice)
        self._list_points()

    def _detach(self, splices: list[Splice], scope: Scope | None = None) -> None:
        """Take out what is there of them; may be interrupted anywhere, and called again."""
        for splice in splices:
            for point in self._points_of(splice):
                point.splices = [e for e in point.splices if e not in (splice, splice.reader)]
                point.scopes = [each for each in point.scopes if each is not scope]
        self._attached = [each for each in self._attached if each not in splices]
        self._list_points()

    def _points_of(self, splice: Splice) -> list[HookPoint]:
        """Where it is attached."""
        return [self.hook_dict[name] for name in {splice.site.hook_in, splice.site.hook_out}]

    def _list_points(self) -> None:
        """Bring the lists of hook points, by name, in line with what is spliced in."""
        inner: dict[str, dict[str, HookPoint]] = {}
        modules = {n: module for n, module in self.mod_dict.items() if not is_inside_sae(n)}
        for splice in self._attached:
            inner.setdefault(splice.site.hook_out, {}).update(splice.names)
            modules |= splice.names
        points: dict[str, HookPoint] = {}
        for name, point in self.hook_dict.items():
            if not is_inside_sae(name):
                points[name] = point
                points |= inner.get(name, {})
        # Each at once, so that neither Ctrl-C nor another thread finds a part.
        self.mod_dict, self.hook_dict = modules, points


class _TemporarySplices:
    """The work of `saes`."""

    def __init__(self, model: Splicing, splices: list[Splice]) -> None:
        self.model, self.splices, self.scope = model, splices, Scope()

    def begin(self) -> None:
        self.model._open_scope(self.scope)
        self.model._attach(self.splices, self.scope)

    def end(self) -> None:
        self.model._detach(self.splices, self.scope)
        self.model._close_scope(self.scope)


def splice_site(
    model: Splicing, sae: Any, hook_name: str | None = None, hook_name_out: str | None = None
) -> SpliceSite:
    """An autoencoder at hooks of the model, once it is sure that it fits there.

    Args:
        model: The model.
        sae: Anything with `encode` and `decode`.
        hook_name: What it reads; None is what its configuration says.
        hook_name_out: What it replaces, for a transcoder.

    Raises:
        HookNameError: No such hook, or one behind a flag that is off.
        InputError: Several hooks.
        SpliceError: No hook is known, or the autoencoder does not fit.
    """
    hook_in = _one_hook(model, _home(sae) if hook_name is None else hook_name)
    hook_out = _one_hook(model, site_written(sae, hook_in, hook_name_out))
    if stack_of(hook_in) != stack_of(hook_out):
        raise SpliceError(
            f"a transcoder reads at {hook_in!r} and writes at {hook_out!r}; both must be in one "
            "stack."
        )
    parameter = next(model.parameters())
    read, written = (_activation(model, name) for name in (hook_in, hook_out))
    return fit(sae, read, written, parameter.dtype, parameter.device)


def _home(sae: Any) -> Any:
    """The hook that an autoencoder's configuration names."""
    name = configured(sae, "hook_name")
    if name is None:
        raise SpliceError(
            f"this {type(sae).__name__} does not say where it belongs. Pass hook_name, or "
            "saes={hook_name: sae}."
        )
    return name


def _one_hook(model: Splicing, name: Any) -> str:
    names = model.hook_names([name] if isinstance(name, str) else name)
    if len(names) != 1:
        raise InputError(f"{name!r} is {len(names)} hooks; an autoencoder is at one.")
    if is_inside_sae(names[0]):
        raise SpliceError(
            f"{names[0]!r} belongs to an autoencoder that is spliced in. To put another one behind "
            f"it, add it at {site_of(names[0])!r}."
        )
    return names[0]


def _activation(model: Splicing, name: str) -> Activation:
    """What a hook sees in some pass, small where that depends on the input."""
    point = model.hook_dict[name]
    *lead, width = [2 if size is None else size for size in model.axis_sizes(name)]
    long = ("pos", "query", "frame")
    axes = point.axes
    shape = [min(n, 3) if axis in long else n for n, axis in zip(lead, axes[:-1], strict=True)]
    return Activation(name, axes, (*shape, width), point.sizes)


def _pairs(saes: SAEs) -> list[tuple[NamesFilter, Any]]:
    """Autoencoders with where they go, None where they say so themselves."""
    if isinstance(saes, Mapping):
        return [
            (name, sae)
            for name, some in saes.items()
            for sae in (some if isinstance(some, (list, tuple)) else [some])
        ]
    if not isinstance(saes, Iterable) or isinstance(saes, torch.nn.Module):
        raise SpliceError(
            f"saes is a {type(saes).__name__}; pass {{hook_name: sae}} or a list of autoencoders."
        )
    return [(None, sae) for sae in saes]


def _free_prefix(name: str, taken: list[Splice]) -> str:
    """What the names of a new splice's hook points at a site begin with."""
    prefixes = {splice.prefix for splice in taken if splice.site.hook_out == name}
    number = 1
    while (prefix := name if number == 1 else f"{name}.sae{number}") in prefixes:
        number += 1
    return prefix
