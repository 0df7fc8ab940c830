"""Multi-head attention, of a stack to itself or of the decoder to the encoder.

Runs PyTorch's fused attention unless something looks at this very layer's
scores or pattern; then this layer alone computes them explicitly.
"""

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor, nn

from hooked_whisper.config import HookedWhisperConfig, Stack
from hooked_whisper.hooks.points import HookPoint
from hooked_whisper.model.kv_cache import KVCache
from hooked_whisper.model.layers import Linear

HeadVectors = Float[Tensor, "batch pos head d_head"]


class Attention(nn.Module):
    """One attention layer with Whisper's parameters: queries, values and output have biases.

    Args:
        cfg: The model's configuration.
        stack: The stack that the queries come from.
        cross: Whether keys and values are read from the encoder's output.
    """

    def __init__(self, cfg: HookedWhisperConfig, stack: Stack, cross: bool = False) -> None:
        super().__init__()
        self.n_heads = cfg.n_heads(stack)
        self.cross = cross
        self.causal = stack == "decoder" and not cross
        self.query = Linear(cfg.d_model, cfg.d_model)
        self.key = Linear(cfg.d_model, cfg.d_model, bias=cfg.key_bias)
        self.value = Linear(cfg.d_model, cfg.d_model)
        self.out = Linear(cfg.d_model, cfg.d_model)

        read = "key" if cross else "pos"
        self.hook_q = HookPoint("batch pos head d_head")
        self.hook_k = HookPoint(f"batch {read} head d_head")
        self.hook_v = HookPoint(f"batch {read} head d_head")
        self.hook_attn_scores = HookPoint("batch head query key")
        self.hook_pattern = HookPoint("batch head query key")
        self.hook_z = HookPoint("batch pos head d_head")
        self.hook_result = HookPoint("batch pos head d_model", flag="use_attn_result")

    def forward(
        self,
        query_input: Float[Tensor, "batch pos *head d_model"],
        key_input: Float[Tensor, "key_batch key *key_head d_model"] | None,
        value_input: Float[Tensor, "key_batch key *key_head d_model"] | None,
        kv_cache: KVCache | None = None,
    ) -> tuple[
        Float[Tensor, "batch pos d_model"], Float[Tensor, "batch n_heads pos all_keys"] | None
    ]:
        """What the layer writes, and its scores if they were computed.

        openai-whisper's word timing reads the scores from the second place,
        through a torch hook on this module.

        Args:
            query_input: What queries are made of; with a head axis where each
                head brings its own.
            key_input: What keys are made of; None where the cache has them.
            value_input: Likewise for values.
            kv_cache: Keys and values of earlier positions, to be extended.
        """
        q = self.hook_q(self.project(self.query, query_input))
        k, v = self._keys_and_values(key_input, value_input, kv_cache)
        if k.shape[0] not in (1, q.shape[0]):
            # Several hypotheses for each recording: beam search.
            k, v = (each.repeat_interleave(q.shape[0] // k.shape[0], dim=0) for each in (k, v))

        z, scores = self.attend(q, k, v)
        return self.write(self.hook_z(z)), scores

    def attend(
        self,
        q: HeadVectors,
        k: Float[Tensor, "key_batch key head d_head"],
        v: Float[Tensor, "key_batch key head d_head"],
    ) -> tuple[HeadVectors, Float[Tensor, "batch n_heads pos key"] | None]:
        """What each head reads with its queries, and its scores if they were computed."""
        q, k, v = (each.permute(0, 2, 1, 3) for each in (q, k, v))
        if self.needs_scores:
            z, scores = self._attend_explicitly(q, k, v)
        else:
            z, scores = self._attend_fused(q, k, v), None
        return z.permute(0, 2, 1, 3), scores

    def write(self, z: HeadVectors) -> Float[Tensor, "batch pos d_model"]:
        """What the layer writes to the residual stream, from what its heads read."""
        if self.hook_result.enabled:
            result = self.hook_result(
                einsum(z, self.W_O.to(z.dtype), "b pos head d, head d m -> b pos head m")
            )
            return result.sum(dim=2) + self.b_O.to(z.dtype)
        return self.out(z.flatten(start_dim=2))

    def write_from(
        self, query_input: Float[Tensor, "batch pos d_model"], source: Float[Tensor, "batch key m"]
    ) -> Float[Tensor, "batch pos d_model"]:
        """What cross-attention writes, without keys and values, with no hook of it firing.

        Queries are taken to what keys are made of, and its mean to the heads' values: less
        work than keys and values of all positions, for few queries. A bias of the keys adds
        the same to all of a query's scores, so that it changes nothing.
        """
        q = self.project(self.query, query_input)
        q = einsum(q * q.shape[-1] ** -0.5, self.W_K.to(q.dtype), "b p h d, h m d -> b h p m")
        pattern = torch.bmm(q.flatten(1, 2), source.mT).softmax(dim=-1)
        mean = torch.bmm(pattern, source).unflatten(1, (self.n_heads, -1))
        z = einsum(mean, self.W_V.to(mean.dtype), "b h p m, h m d -> b p h d")
        return self.write(z + self.b_V.to(z.dtype))

    @property
    def needs_scores(self) -> bool:
        """Whether anything looks at scores or pattern: a hook on them, or on the layer itself."""
        return (
            self.hook_pattern.is_hooked
            or self.hook_attn_scores.is_hooked
            or bool(self._forward_hooks)
        )

    def project(self, linear: Linear, x: Float[Tensor, "batch pos *head d_model"]) -> HeadVectors:
        """Queries, keys or values of each head, from what they are made of."""
        if x.ndim == 3:
            return linear(x).unflatten(-1, (self.n_heads, -1))
        # One residual stream for each head: every head reads its own.
        weight = rearrange(linear.weight, "(head d) m -> head m d", head=self.n_heads)
        projected = einsum(x, weight.to(x.dtype), "b pos head m, head m d -> b pos head d")
        if linear.has_bias:
            projected = projected + linear.bias.to(x.dtype).view(self.n_heads, -1)
        return projected

    def _keys_and_values(
        self, key_input: Tensor | None, value_input: Tensor | None, kv_cache: KVCache | None
    ) -> tuple[Tensor, Tensor]:
        if key_input is None or value_input is None:
            assert kv_cache is not None
            return kv_cache[self.key], kv_cache[self.value]
        k = self.hook_k(self.project(self.key, key_input))
        v = self.hook_v(self.project(self.value, value_input))
        if kv_cache is None:
            return k, v
        if self.cross:
            # Every step reads all of these: each head's lie together in memory.
            k, v = (each.transpose(1, 2).contiguous().transpose(1, 2) for each in (k, v))
        return kv_cache.append(self.key, k), kv_cache.append(self.value, v)

    def _attend_fused(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        n_query, n_key = q.shape[2], k.shape[2]
        if not self.causal or n_query == 1:
            return F.scaled_dot_product_attention(q, k, v)
        if n_query == n_key:
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=_causal_mask(q, n_key))

    def _attend_explicitly(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        # As openai-whisper: half of 1/sqrt(d_head) on either side, softmax in float32.
        scale = q.shape[-1] ** -0.25
        scores = (q * scale) @ (k * scale).transpose(-1, -2)
        if self.causal and q.shape[2] > 1:
            scores = scores + _causal_mask(q, k.shape[2])
        scores = self.hook_attn_scores(scores.float())
        if self.hook_attn_scores.is_hooked or self._forward_hooks or scores.requires_grad:
            weights = scores.softmax(dim=-1)
        else:
            # Nobody holds the scores: their memory serves for the pattern.
            weights = torch.softmax(scores, dim=-1, out=scores)
        pattern = self.hook_pattern(weights.to(q.dtype))
        return pattern @ v, scores.detach()

    @property
    def W_Q(self) -> Float[Tensor, "head d_model d_head"]:
        """What each head's queries read from the normalized residual; a view of the weight."""
        return self._split_rows(self.query.weight)

    @property
    def W_K(self) -> Float[Tensor, "head d_model d_head"]:
        """What each head's keys read; a view of the weight."""
        return self._split_rows(self.key.weight)

    @property
    def W_V(self) -> Float[Tensor, "head d_model d_head"]:
        """What each head's values read; a view of the weight."""
        return self._split_rows(self.value.weight)

    @property
    def W_O(self) -> Float[Tensor, "head d_head d_model"]:
        """What each head writes to the residual stream; a view of the weight."""
        return rearrange(self.out.weight, "m (head d) -> head d m", head=self.n_heads)

    @property
    def b_Q(self) -> Float[Tensor, "head d_head"]:
        """What is added to each head's queries; a view of the bias."""
        return self.query.bias.view(self.n_heads, -1)

    @property
    def b_K(self) -> Float[Tensor, "head d_head"]:
        """What is added to each head's keys: zeros, as Whisper's keys have no bias."""
        if not self.key.has_bias:
            return torch.zeros_like(self.b_Q)
        return self.key.bias.view(self.n_heads, -1)

    @property
    def b_V(self) -> Float[Tensor, "head d_head"]:
        """What is added to each head's values; a view of the bias."""
        return self.value.bias.view(self.n_heads, -1)

    @property
    def b_O(self) -> Float[Tensor, "d_model"]:
        """What the layer writes whatever its heads do."""
        return self.out.bias

    def _split_rows(self, weight: Tensor) -> Tensor:
        return rearrange(weight, "(head d) m -> head m d", head=self.n_heads)


def _causal_mask(q: Tensor, n_key: int) -> Float[Tensor, "query key"]:
    """0 where a query may look, -inf at later keys; the last query sees every key."""
    n_query = q.shape[2]
    mask = torch.full((n_query, n_key), float("-inf"), device=q.device, dtype=q.dtype)
    return mask.triu_(1 + n_key - n_query)
