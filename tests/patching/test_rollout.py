"""Rollouts follow the papers' rules, written out a row at a time, and find spoken digits."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hooked_whisper.digits import recordings
from hooked_whisper.errors import InterventionError, MetricError, SiteError
from hooked_whisper.model.whisper import HookedWhisper
from hooked_whisper.patching.rollout import attention_rollout, gradient_rollout
from hooked_whisper.speech.mel import Mel

Matrix = Any


@pytest.fixture
def mel(tiny_mel: Tensor) -> Mel:
    return Mel(tiny_mel, torch.tensor([44, 21]))


def patterns_of_row(cache: dict[str, Tensor], row: int) -> dict[str, Matrix]:
    """Each layer's pattern of one recording, `[head query key]`, in float64."""
    return {name: value[row].double().numpy() for name, value in cache.items()}


def mean_over_heads(pattern: Matrix) -> Matrix:
    total = 0 * pattern[0]
    for head in pattern:
        total = total + head / len(pattern)
    return total


def abnar_zuidema(patterns: dict[str, Matrix], model: Any) -> tuple[Matrix, Matrix, Matrix]:
    """Half of each layer stays and half is read, a position at a time."""
    n_audio, n_text = model.cfg.n_audio_ctx, len(patterns["decoder.blocks.0.attn.hook_pattern"][0])
    audio = np.eye(n_audio)
    for layer in range(model.cfg.n_audio_layers):
        a = mean_over_heads(patterns[f"encoder.blocks.{layer}.attn.hook_pattern"])
        audio = np.stack(
            [
                0.5 * audio[q] + 0.5 * sum(a[q, k] * audio[k] for k in range(n_audio))
                for q in range(n_audio)
            ]
        )
    # A decoder position is a mixture of tokens, then of encoder positions.
    mixed = np.concatenate([np.eye(n_text), np.zeros((n_text, n_audio))], axis=1)
    heard = np.concatenate([np.zeros((n_audio, n_text)), audio], axis=1)
    for layer in range(model.cfg.n_text_layers):
        a = mean_over_heads(patterns[f"decoder.blocks.{layer}.attn.hook_pattern"])
        mixed = np.stack(
            [
                0.5 * mixed[q] + 0.5 * sum(a[q, k] * mixed[k] for k in range(n_text))
                for q in range(n_text)
            ]
        )
        a = mean_over_heads(patterns[f"decoder.blocks.{layer}.cross_attn.hook_pattern"])
        mixed = np.stack(
            [
                0.5 * mixed[q] + 0.5 * sum(a[q, k] * heard[k] for k in range(n_audio))
                for q in range(n_text)
            ]
        )
    return audio, mixed[:, :n_text], mixed[:, n_text:]


def test_attention_rollout_by_hand(tiny_model: Any, mel: Mel, tiny_tokens: Tensor) -> None:
    rollout = attention_rollout(tiny_model, mel, tiny_tokens)
    _, cache = tiny_model.run_with_cache(mel, tiny_tokens, names_filter="*.hook_pattern")
    for row in range(2):
        by_hand = abnar_zuidema(patterns_of_row(cache, row), tiny_model)
        for found, expected in zip(
            (rollout.encoder, rollout.decoder, rollout.cross), by_hand, strict=True
        ):
            assert found is not None
            np.testing.assert_allclose(found[row].detach().numpy(), expected, atol=1e-5)


def test_attention_rollout_shares_out_one(tiny_model: Any, mel: Mel, tiny_tokens: Tensor) -> None:
    rollout = attention_rollout(tiny_model, mel, tiny_tokens)
    assert rollout.decoder is not None and rollout.cross is not None
    torch.testing.assert_close(rollout.encoder.sum(dim=-1), torch.ones(2, 30))
    everything = rollout.decoder.sum(dim=-1) + rollout.cross.sum(dim=-1)
    torch.testing.assert_close(everything, torch.ones(2, 7))
    assert bool((rollout.decoder.triu(1) == 0).all())  # later tokens are not heard of


def chefer(
    patterns: dict[str, Matrix], gradients: dict[str, Matrix], model: Any
) -> tuple[Matrix, Matrix, Matrix]:
    """Equations 5 to 10 of the paper, in its own symbols, for one recording."""

    def weighted(name: str) -> Matrix:
        raised = [
            np.maximum(g * a, 0) for g, a in zip(gradients[name], patterns[name], strict=True)
        ]
        return mean_over_heads(np.stack(raised))

    def normalized(r: Matrix) -> Matrix:
        result = np.eye(len(r))
        for row in range(len(r)):
            hat = r[row] - np.eye(len(r))[row]
            if hat.sum() > 0:
                result[row] += hat / hat.sum()
        return result

    n_audio, n_text = model.cfg.n_audio_ctx, len(patterns["decoder.blocks.0.attn.hook_pattern"][0])
    r_ii, r_qq, r_qi = np.eye(n_audio), np.eye(n_text), np.zeros((n_text, n_audio))
    for layer in range(model.cfg.n_audio_layers):
        r_ii = r_ii + weighted(f"encoder.blocks.{layer}.attn.hook_pattern") @ r_ii
    for layer in range(model.cfg.n_text_layers):
        a = weighted(f"decoder.blocks.{layer}.attn.hook_pattern")
        r_qi, r_qq = r_qi + a @ r_qi, r_qq + a @ r_qq
        a = weighted(f"decoder.blocks.{layer}.cross_attn.hook_pattern")
        r_qi = r_qi + normalized(r_qq).T @ a @ normalized(r_ii)
    return r_ii, r_qq, r_qi


def patterns_and_gradients(
    model: Any, mel: Mel, tokens: Tensor, pos: int, wanted: Tensor
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Patterns as leaves of the graph would cut it: the gradient is kept at each."""
    held: dict[str, Tensor] = {}

    def keep(value: Tensor, hook: Any) -> Tensor:
        held[hook.name] = value.clone()
        held[hook.name].retain_grad()
        return held[hook.name]

    logits = model.run_with_hooks(mel, tokens, fwd_hooks=[("*.hook_pattern", keep)])
    logits[torch.arange(len(tokens)), pos, wanted].sum().backward()
    gradients = {name: each.grad for name, each in held.items()}
    return {name: each.detach() for name, each in held.items()}, gradients  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("pos", "token"),
    [(4, [3, 8]), (-1, 5), (0, None)],
    ids=["a token for each row", "one for all, from the end", "the most probable"],
)
def test_gradient_rollout_by_hand(
    tiny_model: Any, mel: Mel, tiny_tokens: Tensor, pos: int, token: Any
) -> None:
    rollout = gradient_rollout(tiny_model, mel, tiny_tokens, pos, token)
    wanted = torch.as_tensor(token).expand(2) if token is not None else None
    if wanted is None:
        wanted = tiny_model(mel, tiny_tokens)[:, pos].argmax(dim=-1)
    found = patterns_and_gradients(tiny_model, mel, tiny_tokens, pos, wanted)
    for row in range(2):
        by_hand = chefer(*(patterns_of_row(each, row) for each in found), tiny_model)
        matrices = (rollout.encoder, rollout.decoder, rollout.cross)
        for matrix, expected in zip(matrices, by_hand, strict=True):
            assert matrix is not None
            np.testing.assert_allclose(matrix[row].numpy(), expected, atol=1e-5, rtol=1e-5)
    assert rollout.pos == pos % 7


def test_gradient_rollout_ignores_what_comes_later(
    tiny_model: Any, mel: Mel, tiny_tokens: Tensor
) -> None:
    rollout = gradient_rollout(tiny_model, mel, tiny_tokens, pos=3)
    assert bool((rollout.tokens()[:, 4:] == 0).all())
    assert bool((rollout.tokens()[:, 3] >= 1).all())  # its own position, to begin with
    cut = gradient_rollout(tiny_model, mel, tiny_tokens[:, :4], pos=3)
    torch.testing.assert_close(cut.audio(), rollout.audio())


def test_rows_and_padding(tiny_model: Any, mel: Mel, tiny_tokens: Tensor) -> None:
    rollout = attention_rollout(tiny_model, mel, tiny_tokens)
    assert rollout.cross is not None and rollout.decoder is not None
    assert torch.equal(rollout.audio(2, all_frames=True), rollout.cross[:, 2])
    assert torch.equal(rollout.tokens(), rollout.decoder[:, -1])
    speech = rollout.audio(2)  # 22 and 11 positions
    assert torch.equal(speech[0], rollout.cross[0, 2, :22])
    assert torch.equal(speech[1, :11], rollout.cross[1, 2, :11])
    assert speech.shape == (2, 22) and bool((speech[1, 11:] == 0).all())
    plain = attention_rollout(tiny_model, mel.values, tiny_tokens)
    assert plain.audio().shape == (2, 30)


def test_the_encoder_alone(tiny_model: Any, mel: Mel, tiny_tokens: Tensor) -> None:
    alone = attention_rollout(tiny_model, mel)
    both = attention_rollout(tiny_model, mel, tiny_tokens)
    torch.testing.assert_close(alone.encoder, both.encoder)
    with pytest.raises(InterventionError, match=r"without tokens"):
        alone.audio()


def test_wrong_input(tiny_model: Any, mel: Mel, tiny_tokens: Tensor) -> None:
    with pytest.raises(MetricError, match=r"reads position 7; there are 7"):
        gradient_rollout(tiny_model, mel, tiny_tokens, pos=7)
    with pytest.raises(MetricError, match=r"token is 101, out of the vocabulary"):
        gradient_rollout(tiny_model, mel, tiny_tokens, token=101)
    with pytest.raises(MetricError, match=r"3 token ids for 2 rows"):
        gradient_rollout(tiny_model, mel, tiny_tokens, token=[1, 2, 3])
    with torch.inference_mode(), pytest.raises(InterventionError, match=r"inference_mode"):
        gradient_rollout(tiny_model, mel, tiny_tokens)
    rollout = gradient_rollout(tiny_model, mel, tiny_tokens, pos=3)
    with pytest.raises(InterventionError, match=r"position 3; position 2 needs"):
        rollout.audio(2)
    with pytest.raises(SiteError, match=r"no position 7: there are 7 tokens"):
        rollout.tokens(7)


def test_leaves_no_hook_and_no_gradient(fresh_model: Any, mel: Mel, tiny_tokens: Tensor) -> None:
    needed = [parameter.requires_grad for parameter in fresh_model.parameters()]

    def fail(value: Tensor, hook: Any) -> None:
        raise RuntimeError("in the last layer")

    with torch.no_grad():
        gradient_rollout(fresh_model, mel, tiny_tokens)
    assert all(parameter.grad is None for parameter in fresh_model.parameters())
    fresh_model.add_hook("decoder.hook_logits", fail)
    for run in (attention_rollout, gradient_rollout):
        with pytest.raises(RuntimeError, match="in the last layer"):
            run(fresh_model, mel, tiny_tokens)
    fresh_model.reset_hooks()
    assert [parameter.requires_grad for parameter in fresh_model.parameters()] == needed
    assert not any(point.is_hooked for point in fresh_model.hook_dict.values())


def test_relevance_falls_on_the_spoken_digit(digits_model: HookedWhisper) -> None:
    """The middle one of three; docs/attribution.md has all 26 of the shipped recordings."""
    model = digits_model
    spoken = recordings()[0]
    mel, tokens = model.to_mel(spoken.path), model.to_tokens(" " + spoken.text)
    times = [slice(round(50 * word.start_s), round(50 * word.end_s)) for word in spoken.words]

    def shares(relevance: Tensor) -> list[float]:
        return [float(relevance[0, time].sum() / relevance.sum()) for time in times]

    weighted = shares(gradient_rollout(model, mel, tokens, 4, int(tokens[0, 5])).audio())
    assert int(np.argmax(weighted)) == 1 and weighted[1] > 0.6
    # Plain attention is on the digit more than on the rest, but tells digits apart less well.
    plain = shares(attention_rollout(model, mel, tokens).audio(4))
    share_of_time = (spoken.words[1].end_s - spoken.words[1].start_s) / spoken.duration_s
    assert 1.5 * share_of_time < plain[1] < weighted[1]
