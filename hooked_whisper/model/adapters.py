"""An adapter that is in a model's weights, or for a while is not."""

from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn

from hooked_whisper.errors import CheckpointError, ConfigError, shown
from hooked_whisper.hooks.attached import close_scope, open_scope
from hooked_whisper.hooks.points import Scope
from hooked_whisper.interrupts import Temporarily, uninterrupted
from hooked_whisper.model.calls import WhisperBase

if TYPE_CHECKING:
    from hooked_whisper.weights.adapter_changes import Adapter

Model = TypeVar("Model", bound=WhisperBase)


class AdapterWeights(nn.Module):
    """Of the weights that an adapter changes, the values that are not in use.

    They go where the model goes, and are no part of its state.
    """

    def __init__(self, source: str, others: dict[str, Tensor]) -> None:
        super().__init__()
        self.source = source
        self.names = list(others)
        self.is_on = True
        for number, value in enumerate(others.values()):
            self.register_buffer(f"other_{number}", value, persistent=False)

    def switch(self, model: WhisperBase, on: bool) -> None:
        """Have the weights with the adapter in use, or those of the base."""
        if on == self.is_on:
            return
        with uninterrupted():
            for number, name in enumerate(self.names):
                weight, place = model.get_parameter(name), f"other_{number}"
                self._buffers[place], weight.data = weight.data, self.get_buffer(place)
            self.is_on = on


@torch.no_grad()
def attach_adapter(model: WhisperBase, adapter: "Adapter") -> None:
    """Put an adapter into the weights of a model that has its base's.

    Raises:
        CheckpointError: Weights that overflow in the model's dtype.
    """
    changed: dict[str, Tensor] = {}
    for name, change in adapter.changes.items():
        weight = model.get_parameter(name)
        changed[name] = change(weight.float()).to(weight.dtype)
        if not all(bound.isfinite() for bound in changed[name].aminmax()):
            dtype = str(weight.dtype).removeprefix("torch.")
            raise CheckpointError(
                f"with the adapter in {adapter.source} {name!r} is not finite in {dtype}. Load it "
                "with dtype=torch.float32."
            )
    held = AdapterWeights(adapter.source, changed)
    held.is_on = False
    held.switch(model, on=True)
    model.adapter_weights = held


class _Switched:
    """The work of `model.adapter`."""

    def __init__(self, model: WhisperBase, on: bool) -> None:
        self.model, self.on, self.scope = model, on, Scope()
        self.held: AdapterWeights = _held(model)
        self.was_on = self.held.is_on

    def begin(self) -> None:
        open_scope(self.model, self.scope)
        self.held.switch(self.model, self.on)

    def end(self) -> None:
        self.held.switch(self.model, self.was_on)
        close_scope(self.model, self.scope)


def adapter(model: Model, on: bool) -> Temporarily[Model]:
    """Have the adapter on or off for the length of a `with` block, however it ends.

    Off, the weights are the base's, bit for bit; on, they are those that merging gives. All that
    reads weights or runs the model follows: hooks, caches, patching, decoding.

    Args:
        on: False is the base alone.

    Raises:
        ConfigError: The model has no adapter.
        HookError: Another thread has hooks, autoencoders or the adapter switched for a while.

    >>> with model.adapter(False):                                      # doctest: +SKIP
    ...     base_logits = model(mel, tokens)
    """
    if not isinstance(on, bool):
        raise ConfigError(f"an adapter is on (True) or off (False), not {shown(on)}.")
    _held(model)
    return Temporarily(model, lambda: _Switched(model, on))


def merge_adapter(model: Model) -> Model:
    """Keep the weights with the adapter and forget the base's; returns the model.

    Raises:
        ConfigError: The model has no adapter, or it is off.
    """
    if not _held(model).is_on:
        raise ConfigError("the adapter is off here; merge it outside of model.adapter(False).")
    model.adapter_weights = None
    return model


def _held(model: WhisperBase) -> AdapterWeights:
    held: AdapterWeights | None = model.adapter_weights
    if held is None:
        raise ConfigError(
            "this model has no adapter. One comes with from_pretrained(folder of an adapter) or "
            "from_hf(a PeftModel)."
        )
    return held
