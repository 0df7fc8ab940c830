"""Keys and values of the positions decoded so far."""

from collections.abc import Iterator, MutableMapping

import torch
from torch import Tensor, nn

_FIRST_CAPACITY = 64


class KVCache(MutableMapping[nn.Module, Tensor]):
    """Keys and values, kept by the projection that made them, as openai-whisper keeps them.

    Where openai-whisper joins tensors anew at every token, this writes into
    room that doubles when it is full. Setting an entry replaces it whole,
    which is how beam search reorders its hypotheses.
    """

    def __init__(self) -> None:
        self.n_pos = 0
        self._buffers: dict[nn.Module, Tensor] = {}
        self._filled: dict[nn.Module, int] = {}

    def append(self, module: nn.Module, new: Tensor) -> Tensor:
        """Add positions behind those kept for a projection, and return all of them."""
        if module not in self._buffers:
            self[module] = new
            return new
        buffer, start = self._buffers[module], self._filled[module]
        end = start + new.shape[1]
        if end > buffer.shape[1]:
            capacity = max(_FIRST_CAPACITY, 2 * buffer.shape[1], end)
            grown = new.new_empty(len(new), capacity, *buffer.shape[2:])
            grown[:, :start] = buffer[:, :start]  # one row serves all
            self._buffers[module] = buffer = grown
        if torch.is_grad_enabled() and (new.requires_grad or buffer.requires_grad):
            joined = torch.cat([buffer[:, :start], new], dim=1)
            self[module] = joined
            return joined
        buffer[:, start:end] = new
        self._filled[module] = end
        return buffer[:, :end]

    def keep_rows(self, rows: Tensor) -> None:
        """Forget the keys and values of all other rows; the layout in memory stays."""
        for module, buffer in self._buffers.items():
            kept = torch.empty_like(buffer[: len(rows)])
            self._buffers[module] = kept.copy_(buffer[rows])

    def __getitem__(self, module: nn.Module) -> Tensor:
        return self._buffers[module][:, : self._filled[module]]

    def __setitem__(self, module: nn.Module, value: Tensor) -> None:
        self._buffers[module] = value
        self._filled[module] = value.shape[1]

    def __delitem__(self, module: nn.Module) -> None:
        del self._buffers[module], self._filled[module]

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(self._buffers)

    def __len__(self) -> int:
        return len(self._buffers)

    def __contains__(self, module: object) -> bool:
        return module in self._buffers

    def __bool__(self) -> bool:
        # openai-whisper asks for a cache anew as long as the one it has is falsy.
        return True
