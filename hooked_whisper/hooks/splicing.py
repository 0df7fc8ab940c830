"""Autoencoders put into a model and taken out, all or none: what its methods do."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from hooked_whisper.errors import InputError, SpliceError
from hooked_whisper.hooks.attached import HookedModel, close_scope, open_scope
from hooked_whisper.hooks.names import NamesFilter, is_inside_sae, site_of, stack_of
from hooked_whisper.hooks.points import HookPoint, Scope
from hooked_whisper.hooks.splice import Splice
from hooked_whisper.hooks.splice_site import Activation, SpliceSite, configured, fit, site_written

SAEs = Mapping[Any, Any] | Iterable[Any]
"""Autoencoders by hook name, several as a list; or autoencoders that name their hook themselves."""


def prepare(
    model: HookedModel,
    pairs: Iterable[tuple[NamesFilter, Any]],
    use_error_term: bool | None,
    speech_only: bool,
    hook_name_out: str | None = None,
) -> list[Splice]:
    """Splices that fit, none of them attached yet."""
    has_grad = torch.is_grad_enabled()
    try:
        return _fitted(model, pairs, use_error_term, speech_only, hook_name_out)
    except BaseException:  # Ctrl-C may have come before PyTorch's no_grad put this back
        torch.set_grad_enabled(has_grad)
        raise


def _fitted(
    model: HookedModel,
    pairs: Iterable[tuple[NamesFilter, Any]],
    use_error_term: bool | None,
    speech_only: bool,
    hook_name_out: str | None,
) -> list[Splice]:
    prepared: list[Splice] = []
    for names_filter, sae in pairs:
        for name in model.hook_names(_home(sae) if names_filter is None else names_filter):
            site = splice_site(model, sae, name, hook_name_out)
            if speech_only:
                _check_speech(model, site.hook_out)
            use_error = use_error_term
            if use_error is None:
                use_error = bool(getattr(sae, "use_error_term", False))
            prepared.append(
                Splice(
                    site,
                    use_error_term=use_error,
                    prefix=_free_prefix(site.hook_out, [*model._attached, *prepared]),
                    speech_only=speech_only,
                )
            )
    return prepared


def _check_speech(model: HookedModel, name: str) -> None:
    """Refuse `speech_only` where an activation has no encoder positions."""
    point = model.hook_dict[name]
    if not name.startswith("encoder") or point.axes[1:2] != ("pos",):
        raise SpliceError(
            f"speech_only is for activations of encoder positions; {name!r} has axes "
            f"[{' '.join(point.axes)}]. Leave it out there."
        )


def attach(model: HookedModel, splices: list[Splice], scope: Scope | None = None) -> None:
    """Put them in, all or none."""
    try:
        for splice in splices:
            model._attached.append(splice)
            for point in _points_of(model, splice):
                if scope is not None:
                    point.scopes.append(scope)
            if splice.reader is not None:
                model.hook_dict[splice.site.hook_in].splices.append(splice.reader)
            model.hook_dict[splice.site.hook_out].splices.append(splice)
        _list_points(model)
    except BaseException:
        detach(model, splices, scope)
        raise


def detach(model: HookedModel, splices: list[Splice], scope: Scope | None = None) -> None:
    """Take out what is there of them; may be interrupted anywhere, and called again."""
    for splice in splices:
        for point in _points_of(model, splice):
            point.splices = [e for e in point.splices if e not in (splice, splice.reader)]
            point.scopes = [each for each in point.scopes if each is not scope]
    model._attached = [each for each in model._attached if each not in splices]
    _list_points(model)


def _points_of(model: HookedModel, splice: Splice) -> list[HookPoint]:
    """Where it is attached."""
    return [model.hook_dict[name] for name in {splice.site.hook_in, splice.site.hook_out}]


def _list_points(model: HookedModel) -> None:
    """Bring the lists of hook points, by name, in line with what is spliced in."""
    inner: dict[str, dict[str, HookPoint]] = {}
    modules = {n: module for n, module in model.mod_dict.items() if not is_inside_sae(n)}
    for splice in model._attached:
        inner.setdefault(splice.site.hook_out, {}).update(splice.names)
        modules |= splice.names
    points: dict[str, HookPoint] = {}
    for name, point in model.hook_dict.items():
        if not is_inside_sae(name):
            points[name] = point
            points |= inner.get(name, {})
    # Each at once, so that neither Ctrl-C nor another thread finds a part.
    model.mod_dict, model.hook_dict = modules, points


class TemporarySplices:
    """The work of `saes`."""

    def __init__(self, model: HookedModel, splices: list[Splice]) -> None:
        self.model, self.splices, self.scope = model, splices, Scope()

    def begin(self) -> None:
        open_scope(self.model, self.scope)
        attach(self.model, self.splices, self.scope)

    def end(self) -> None:
        detach(self.model, self.splices, self.scope)
        close_scope(self.model, self.scope)


def splice_site(
    model: HookedModel, sae: Any, hook_name: str | None = None, hook_name_out: str | None = None
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


def _one_hook(model: HookedModel, name: Any) -> str:
    names = model.hook_names([name] if isinstance(name, str) else name)
    if len(names) != 1:
        raise InputError(f"{name!r} is {len(names)} hooks; an autoencoder is at one.")
    if is_inside_sae(names[0]):
        raise SpliceError(
            f"{names[0]!r} belongs to an autoencoder that is spliced in. To put another one behind "
            f"it, add it at {site_of(names[0])!r}."
        )
    return names[0]


def _activation(model: HookedModel, name: str) -> Activation:
    """What a hook sees in some pass, small where that depends on the input."""
    point = model.hook_dict[name]
    *lead, width = [2 if size is None else size for size in model.axis_sizes(name)]
    long = ("pos", "query", "frame")
    axes = point.axes
    shape = [min(n, 3) if axis in long else n for n, axis in zip(lead, axes[:-1], strict=True)]
    return Activation(name, axes, (*shape, width), point.sizes)


def pairs_of(saes: SAEs) -> list[tuple[NamesFilter, Any]]:
    """Autoencoders with where they go, None where they say so themselves."""
    if isinstance(saes, Mapping):
        return [
            (name, sae)
            for name, some in saes.items()
            for sae in (some if isinstance(some, (list, tuple)) else [some])
        ]
    if not isinstance(saes, Iterable) or isinstance(saes, torch.nn.Module | torch.Tensor):
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
