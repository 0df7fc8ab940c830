"""Plugging sparse autoencoders into a model: SAELens's words, on any hook."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from hooked_whisper.errors import SpliceError
from hooked_whisper.hooks.cache import WhisperCache
from hooked_whisper.hooks.names import NamesFilter, is_inside_sae, site_of
from hooked_whisper.hooks.points import HookPoint
from hooked_whisper.hooks.root import HookedEncoderDecoder
from hooked_whisper.hooks.splice import Reader, Splice, configured, site_written

SAEs = Mapping[Any, Any] | Iterable[Any]
"""Autoencoders by hook name, several as a list; or autoencoders that name their hook themselves."""


@dataclass(frozen=True)
class _Attached:
    """A splice, and what reads for it elsewhere."""

    splice: Splice
    reader_at: str | None = None


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
        self._attach(self._prepare([(hook_name, sae)], use_error_term, speech_only, hook_name_out))

    def reset_saes(self, names: NamesFilter = None) -> None:
        """Take out all autoencoders, or those at some sites; hooks on the sites themselves stay.

        Raises:
            HookNameError: No such hook.
        """
        sites = set(self.hook_names(names))
        self._detach(
            [each for each in self._attached if names is None or each.splice.name in sites]
        )

    @property
    def acts_to_saes(self) -> dict[str, list[Any]]:
        """The autoencoders at each site that has any, in the order in which they act."""
        found: dict[str, list[Any]] = {}
        for each in self._attached:
            found.setdefault(each.splice.name, []).append(each.splice.sae)
        return found

    @contextmanager
    def saes(
        self: Model, saes: SAEs, use_error_term: bool | None = None, *, speech_only: bool = False
    ) -> Iterator[Model]:
        """Have autoencoders spliced in for the length of a `with` block, however it ends.

        Args:
            saes: Autoencoders by hook name, `{hook_name: sae}`, a list of them
                where several sit at one site in that order; or a list of
                autoencoders that name their hook themselves.
            use_error_term: As in `add_sae`, for all of them.
            speech_only: As in `add_sae`, for those in the encoder.

        Raises:
            SpliceError: One does not fit; none was attached.
        """
        attached = self._prepare(_pairs(saes), use_error_term, speech_only)
        self._attach(attached)
        try:
            yield self
        finally:
            self._detach(attached)

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
        self._attached: list[_Attached] = []

    def _prepare(
        self,
        pairs: Iterable[tuple[NamesFilter, Any]],
        use_error_term: bool | None,
        speech_only: bool,
        hook_name_out: str | None = None,
    ) -> list[_Attached]:
        """Splices that fit, none of them attached yet."""
        prepared: list[_Attached] = []
        for names_filter, sae in pairs:
            wanted = configured(sae, "hook_name") if names_filter is None else names_filter
            if wanted is None:
                raise SpliceError(
                    f"this {type(sae).__name__} does not say where it belongs. Pass hook_name, or "
                    "saes={hook_name: sae}."
                )
            for name in self.hook_names(wanted):
                taken = [each.splice for each in [*self._attached, *prepared]]
                use_error = use_error_term
                if use_error is None:
                    use_error = bool(getattr(sae, "use_error_term", False))
                out = site_written(sae, name, hook_name_out)
                prepared.append(self._fit(sae, name, out, use_error, speech_only, taken))
        return prepared

    def _fit(
        self,
        sae: Any,
        name: str,
        out: str,
        use_error_term: bool,
        speech_only: bool,
        taken: list[Splice],
    ) -> _Attached:
        """One splice that reads at one hook and writes at the same or another."""
        out = self.hook_names([out])[0]
        for each in (name, out):
            if is_inside_sae(each):
                raise SpliceError(
                    f"{each!r} belongs to an autoencoder that is spliced in. To put another one "
                    f"behind it, add it at {site_of(each)!r}."
                )
        if name.split(".")[0] != out.split(".")[0]:
            raise SpliceError(
                f"a transcoder reads at {name!r} and writes at {out!r}; both must be in one stack."
            )
        if speech_only:
            self._check_speech(out)
        point, parameter = self.hook_dict[out], next(self.parameters())
        reader = None if out == name else Reader()
        return _Attached(
            Splice(
                sae,
                out,
                point,
                self._some_shape(out),
                parameter.dtype,
                parameter.device,
                use_error_term=use_error_term,
                prefix=_free_prefix(out, taken),
                speech_only=speech_only,
                reader=reader,
                read_from=(self.hook_dict[name], self._some_shape(name)),
            ),
            reader_at=None if reader is None else name,
        )

    def _some_shape(self, name: str) -> tuple[int, ...]:
        """A shape that the activation can have, small where it depends on the input."""
        *lead, width = [2 if size is None else size for size in self.axis_sizes(name)]
        axes = self.hook_dict[name].axes
        long = ("pos", "query", "frame")
        return (
            *(min(n, 3) if axis in long else n for n, axis in zip(lead, axes[:-1], strict=True)),
            width,
        )

    def _check_speech(self, name: str) -> None:
        """Refuse `speech_only` where an activation has no encoder positions."""
        point = self.hook_dict[name]
        if not name.startswith("encoder") or point.axes[1:2] != ("pos",):
            raise SpliceError(
                f"speech_only is for activations of encoder positions; {name!r} has axes "
                f"[{' '.join(point.axes)}]. Leave it out there."
            )

    def _attach(self, attached: list[_Attached]) -> None:
        for each in attached:
            if each.reader_at is not None:
                assert each.splice.reader is not None
                self.hook_dict[each.reader_at].splices.append(each.splice.reader)
            self.hook_dict[each.splice.name].splices.append(each.splice)
            self._attached.append(each)
        self._list_points()

    def _detach(self, attached: list[_Attached]) -> None:
        for each in attached:
            if each not in self._attached:
                continue
            self._attached.remove(each)
            self.hook_dict[each.splice.name].splices.remove(each.splice)
            if each.reader_at is not None:
                assert each.splice.reader is not None
                self.hook_dict[each.reader_at].splices.remove(each.splice.reader)
        self._list_points()

    def _list_points(self) -> None:
        """Bring the lists of hook points, by name, in line with what is spliced in."""
        for name in [name for name in self.hook_dict if is_inside_sae(name)]:
            del self.mod_dict[name]
        inner: dict[str, dict[str, HookPoint]] = {}
        for each in self._attached:
            inner.setdefault(each.splice.name, {}).update(each.splice.names)
        points = [(n, point) for n, point in self.hook_dict.items() if not is_inside_sae(n)]
        self.hook_dict = {}
        for name, point in points:
            self.hook_dict[name] = point
            self.hook_dict |= inner.get(name, {})
        self.mod_dict |= {name: point for each in inner.values() for name, point in each.items()}


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
    prefixes = {splice.prefix for splice in taken if splice.name == name}
    number = 1
    while (prefix := name if number == 1 else f"{name}.sae{number}") in prefixes:
        number += 1
    return prefix
