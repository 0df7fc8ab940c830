"""The floor of a sweep: the arithmetic that exact numbers cost, at this machine's own speed.

The model is taken as it stands: its matrix products, attention calls and
convolutions, on values that neither the clean nor the corrupted run holds.
With N encoder positions, T tokens, L layers in either stack, width d, MLP
width m, V tokens in the vocabulary, and rows meaning positions:

    product(n, a, b) = 2·n·a·b FLOP                        n rows, from a to b wide
    encoder layer    = product(N, d, 4d + 2m) + attention of N rows
    cross keys       = L·product(n, d, 2d)                 n changed encoder positions
    decoder layer    = product(n, d, 6d + 2m) + n rows' attention to T and to N keys
    logits           = product(r, d, V)                    r positions that the metric reads
    run              = convolutions + L encoder layers + cross keys of N + L decoder layers + logits

A sweep costs two runs, clean and corrupted, and what lies behind each patch:

    position p, decoder layer l    in layer l itself row p's query, key and value only; layers of
                                   rows p to T; in the last one all but keys and values only of
                                   rows that the metric reads; their logits
    window w, encoder layer l      in layer l + 1 queries, keys and values of the window only; then
                                   layers of N rows; cross keys of N (of w, behind the last
                                   layer); the decoder, but for its first self-attention; logits
    head i, encoder layer l        the layer's output product and MLP; then as above

The strict floor also leaves out what can be read off the two runs: a patched
row's query, key, value and MLP are the clean run's; patching the residual
after cross-attention is patching it before the next layer; the embeddings of
one text are equal. The other floor computes each patch on its own.

Neither rearranges the model's formulas, which can cost less than the model's
own: attention to unchanged keys kept from before, key weights folded into queries.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.models import Models
from benchmarks.sweep_tasks import WINDOW, Place
from hooked_whisper import HookedWhisperConfig

Work = Counter[str]
"""How much of what: FLOP of products, calls of the encoder's attention, rows of the rest."""

ENCODER, DECODER, LOGITS = "encoder products", "decoder products", "logit products"
CONVOLUTIONS, ATTENTION, CROSS = "convolutions", "encoder attention", "cross-attention"
GELU, NORM, SOFTMAX = "GELU", "LayerNorm", "log-softmax"

ELEMENTWISE = (GELU, NORM, SOFTMAX)
"""Not in the floor; reported beside it, as memory's speed bounds it."""

UNITS = {ENCODER: "FLOP", DECODER: "FLOP", LOGITS: "FLOP", CONVOLUTIONS: "runs", ATTENTION: "calls"}
"""What amounts count; rows where nothing is said here."""


@dataclass(frozen=True)
class Floor:
    """The arithmetic of runs and patches.

    Args:
        cfg: The model's sizes.
        n_tokens: Decoder positions.
        read: Decoder positions whose logits the metric reads; None is all.
        strict: Leave out what can be read off the clean and the corrupted run.
    """

    cfg: HookedWhisperConfig
    n_tokens: int
    read: Sequence[int] | None = None
    strict: bool = False

    def sweep(self, places: Sequence[Place]) -> Work:
        """Two runs, and every patch."""
        work = self.run() + self.run()
        for place in places:
            work += self.patch(place)
        return work

    def run(self) -> Work:
        """A run from the mel to the logits that the metric reads."""
        n = self.cfg.n_audio_ctx
        layers = self._encoder_layers(self.cfg.n_audio_layers)
        work = Work({CONVOLUTIONS: 1, NORM: n}) + layers + self._cross_keys(n)
        return work + self._decoder(0, 0, self._end) + self._logits(0)

    def patch(self, place: Place) -> Work:
        """What lies behind a patched place."""
        if place.stack == "encoder":
            return self._encoder_patch(place)
        return self._decoder_patch(place.layer, place.hook, place.index)

    # The encoder

    def _encoder_patch(self, place: Place) -> Work:
        cfg, n = self.cfg, self.cfg.n_audio_ctx
        behind = cfg.n_audio_layers - 1 - place.layer
        if place.hook == "hook_resid_post":
            changed = 0 if self.strict else WINDOW
            work = self._encoder_layer(changed) if behind else Work({NORM: changed})
            n_keys = n if behind else changed
            behind = max(0, behind - 1)
        else:  # hook_z; what the other heads write is known
            work = self._after_attention(cfg.d_head("encoder") if self.strict else cfg.d_model)
            n_keys = n
        work += self._encoder_layers(behind) + self._cross_keys(n_keys)
        rows = self._n_needed(0, 0)  # of the decoder's first layer: cross-attention and MLP
        first = Work({DECODER: product(rows, cfg.d_model, cfg.d_model), CROSS: rows})
        return work + first + self._mlp(rows) + self._decoder(1, 0, self._end) + self._logits(0)

    def _encoder_layers(self, n_layers: int) -> Work:
        work = Work()
        for _ in range(n_layers):
            work += self._encoder_layer(self.cfg.n_audio_ctx)
        return work

    def _encoder_layer(self, changed: int) -> Work:
        """A layer of which `changed` rows of the input are not known."""
        d = self.cfg.d_model
        work = Work({ENCODER: product(changed, d, 3 * d), ATTENTION: 1, NORM: changed})
        return work + self._after_attention(d)

    def _after_attention(self, d_in: int) -> Work:
        """A layer's output product, of `d_in` inputs, and its MLP."""
        n, d, m = self.cfg.n_audio_ctx, self.cfg.d_model, self.cfg.d_mlp
        return Work({ENCODER: product(n, d_in, d) + product(n, d, 2 * m), GELU: n, NORM: n})

    def _cross_keys(self, changed: int) -> Work:
        d = self.cfg.d_model
        return Work({ENCODER: self.cfg.n_text_layers * product(changed, d, 2 * d)})

    # The decoder

    def _decoder_patch(self, layer: int, site: str, pos: int) -> Work:
        d = self.cfg.d_model
        behind = layer if site == "hook_resid_pre" else layer + 1
        if not self._n_needed(behind, pos):
            return Work()
        if self.strict and (site == "hook_resid_mid_cross" or behind == 0):
            return Work()  # the clean run's logits, another patch, or no change
        work = Work()
        if site == "hook_resid_mid":
            query = 0 if self.strict else product(1, d, d)
            work += Work({DECODER: query + product(1, d, d), CROSS: 1})
        if site != "hook_resid_pre":
            work += self._mlp(1)
        known = self.strict and site == "hook_resid_pre"
        return work + self._decoder(behind, pos, 0 if known else 1) + self._logits(pos, behind)

    def _decoder(self, first: int, start: int, changed: int) -> Work:
        """Layers from `first` on, for rows from `start` on.

        Args:
            first: The first layer.
            start: The first row.
            changed: Rows of the first layer's input that are not known.
        """
        work = Work()
        for layer in range(first, self.cfg.n_text_layers):
            rows = self._n_needed(layer, start)
            queries = rows
            if layer == first and changed <= 1:
                queries = changed if self._is_needed(layer, start) else 0
            work += self._decoder_layer(rows, queries, changed)
            changed = self._end - start
        return work

    def _decoder_layer(self, rows: int, queries: int, keys: int) -> Work:
        d = self.cfg.d_model
        attention = 4 * d * self.n_tokens * rows
        products = product(queries, d, d) + product(keys, d, 2 * d) + product(rows, d, 3 * d)
        work = Work({DECODER: products + attention, CROSS: rows, NORM: keys + rows})
        return work + self._mlp(rows)

    def _mlp(self, rows: int) -> Work:
        d, m = self.cfg.d_model, self.cfg.d_mlp
        return Work({DECODER: product(rows, d, 2 * m), GELU: rows, NORM: rows})

    def _logits(self, start: int, first: int = 0) -> Work:
        rows = self._n_needed(max(first, self.cfg.n_text_layers - 1), start)
        d, vocab = self.cfg.d_model, self.cfg.d_vocab
        return Work({LOGITS: product(rows, d, vocab), SOFTMAX: rows, NORM: rows})

    def _n_needed(self, layer: int, start: int) -> int:
        """Rows from `start` on that change in a layer and that the metric depends on.

        One past the last layer stands for the logits behind a patch in it: of one row.
        """
        if layer == self.cfg.n_text_layers:
            return int(start in self._read)
        if layer == self.cfg.n_text_layers - 1:
            return sum(row >= start for row in self._read)
        return max(0, self._end - start)

    def _is_needed(self, layer: int, row: int) -> bool:
        return layer < self.cfg.n_text_layers - 1 or row in self._read

    @property
    def _read(self) -> Sequence[int]:
        return range(self.n_tokens) if self.read is None else self.read

    @property
    def _end(self) -> int:
        """Rows from here on reach no logits that are read."""
        return max(self._read) + 1


def product(n: int, d_in: int, d_out: int) -> int:
    """FLOP of a matrix product: n rows, `d_in` to `d_out` wide."""
    return 2 * n * d_in * d_out


def seconds(work: Work, speeds: dict[str, float], elementwise: bool = False) -> float:
    """What the work takes.

    Args:
        work: Amounts.
        speeds: Seconds of one of each.
        elementwise: Count GELU, LayerNorm and log-softmax too.
    """
    return sum(
        amount * speeds[name]
        for name, amount in work.items()
        if elementwise or name not in ELEMENTWISE
    )


@dataclass(frozen=True)
class Speed:
    """How fast this machine does one kind of work.

    Args:
        name: The kind.
        amount: What one call does of it.
        call: Does it, into memory that is there already where PyTorch can.
    """

    name: str
    amount: int
    call: Callable[[], object]


def make_speeds(models: Models) -> list[Speed]:
    """One of each kind, at the sizes of the sweeps; many patches' decoder rows lie side by side."""
    cfg = models.cfg
    n, d, m, vocab = cfg.n_audio_ctx, cfg.d_model, cfg.d_mlp, cfg.d_vocab
    n_heads, n_rows, n_read = cfg.n_audio_heads, 1024, 256

    def rand(*shape: int) -> Tensor:
        return torch.randn(*shape).to(models.device, models.dtype)

    def products(rows: int, *shapes: tuple[int, int]) -> tuple[int, Callable[[], object]]:
        each = [
            (rand(b), rand(rows, a), rand(b, a).t(), rand(rows, b)) for a, b in shapes
        ]  # bias, input, weight, output

        def call() -> None:
            for bias, x, weight, out in each:
                torch.addmm(bias, x, weight, out=out)

        return sum(product(rows, a, b) for a, b in shapes), call

    layer = [(d, d)] * 4 + [(d, m), (m, d)]
    q, rows = rand(1, n_heads, n, d // n_heads), rand(1, n_heads, n_rows, d // n_heads)
    mel, conv1, conv2 = rand(1, cfg.n_mels, cfg.n_frames), rand(d, cfg.n_mels, 3), rand(d, d, 3)
    wide, hidden, logits = rand(n, m), rand(n, d), rand(n_read, vocab)
    return [
        Speed(ENCODER, *products(n, *layer)),
        Speed(DECODER, *products(n_rows, *layer)),
        Speed(LOGITS, *products(n_read, (d, vocab))),
        Speed(
            CONVOLUTIONS,
            1,
            lambda: F.conv1d(F.conv1d(mel, conv1, padding=1), conv2, stride=2, padding=1),
        ),
        Speed(ATTENTION, 1, lambda: F.scaled_dot_product_attention(q, q, q)),
        Speed(CROSS, n_rows, lambda: F.scaled_dot_product_attention(rows, q, q)),
        Speed(GELU, n, lambda: F.gelu(wide)),
        Speed(NORM, n, lambda: F.layer_norm(hidden, (d,))),
        Speed(SOFTMAX, n_read, lambda: logits.logsumexp(dim=1)),
    ]
