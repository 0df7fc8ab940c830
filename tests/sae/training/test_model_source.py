import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from hooked_whisper.errors import HookNameError, TrainingError
from hooked_whisper.sae.architectures.topk import TopKConfig
from hooked_whisper.sae.training.config import TrainingConfig
from hooked_whisper.sae.training.model_source import ModelActivations
from hooked_whisper.sae.training.sources import ActivationSource
from hooked_whisper.sae.training.train import train_sae, train_saes
from hooked_whisper.speech.mel import Mel

ENCODER, DECODER = "encoder.blocks.0.hook_resid_post", "decoder.blocks.1.hook_resid_post"
N_FRAMES = [10, 60, 33, 2, 45]
"""Of five recordings: 5, 30, 17, 1 and 23 positions."""
N_TOKENS = [3, 7, 4, 4, 6]


@pytest.fixture(scope="module")
def mel(tiny_cfg: Any) -> Mel:
    generator = torch.Generator().manual_seed(7)
    values = torch.randn(5, tiny_cfg.n_mels, tiny_cfg.n_frames, generator=generator).clamp(-1, 1)
    return Mel(values, torch.tensor(N_FRAMES))


@pytest.fixture(scope="module")
def tokens(tiny_cfg: Any) -> list[Tensor]:
    generator = torch.Generator().manual_seed(8)
    return [torch.randint(tiny_cfg.d_vocab, (n,), generator=generator) for n in N_TOKENS]


def rows_of(batches: Any, name: str) -> Tensor:
    """All vectors of a hook, in an order of their own."""
    found = torch.cat([batch[name] for batch in batches if name in batch])
    return found[found[:, 0].argsort()]


def expected_rows(model: Any, mel: Mel, tokens: Any, name: str, sizes: Sequence[int]) -> Tensor:
    """The same, one recording after the other."""
    found = []
    for index, size in enumerate(sizes):
        row = None if tokens is None else tokens[index][None]
        _, cache = model.run_with_cache(mel[index], row, names_filter=name)
        found.append(cache[name][0, :size].flatten(1))
    rows = torch.cat(found)
    return rows[rows[:, 0].argsort()]


@pytest.mark.parametrize(("buffer_size", "n_together"), [(1, 1), (40, 2), (10_000, 5)], ids=str)
def test_every_speech_frame_and_token_comes_once_an_epoch(
    tiny_model: Any, mel: Mel, tokens: list[Tensor], buffer_size: int, n_together: int
) -> None:
    source = ModelActivations(
        tiny_model, mel, tokens=tokens, buffer_size=buffer_size, n_together=n_together, n_epochs=1
    )
    batches = list(source.stream([ENCODER, DECODER], 16))
    assert max(len(x) for batch in batches for x in batch.values()) <= 16
    for name, sizes in ((ENCODER, [5, 30, 17, 1, 23]), (DECODER, N_TOKENS)):
        expected = expected_rows(tiny_model, mel, tokens, name, sizes)
        torch.testing.assert_close(rows_of(batches, name), expected, rtol=1e-4, atol=1e-5)


def test_padding_comes_on_request(tiny_model: Any, mel: Mel) -> None:
    source = ModelActivations(tiny_model, mel, all_frames=True, n_epochs=1)
    expected = expected_rows(tiny_model, mel, None, ENCODER, [30] * 5)
    found = rows_of(source.stream([ENCODER], 64), ENCODER)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("encoder.blocks.1.attn.hook_z", [5, 30, 17, 1, 23]),
        ("encoder.blocks.1.mlp.hook_post", [5, 30, 17, 1, 23]),
        ("encoder.ln_final.hook_normalized", [5, 30, 17, 1, 23]),
        ("decoder.blocks.0.cross_attn.hook_k", [5, 30, 17, 1, 23]),
        ("decoder.blocks.2.mlp.hook_post", N_TOKENS),
        ("decoder.hook_logits", N_TOKENS),
    ],
)
def test_other_hooks_have_vectors_too(
    tiny_model: Any, mel: Mel, tokens: list[Tensor], name: str, sizes: list[int]
) -> None:
    source = ModelActivations(tiny_model, mel, tokens=tokens, n_epochs=1)
    found = rows_of(source.stream([name], 64), name)
    expected = expected_rows(tiny_model, mel, tokens, name, sizes)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_hooks_of_one_stack_keep_their_positions_together(tiny_model: Any, mel: Mel) -> None:
    before, after = "encoder.blocks.1.hook_resid_mid", "encoder.blocks.1.hook_resid_post"
    written = "encoder.blocks.1.hook_mlp_out"
    source = ModelActivations(tiny_model, mel, n_epochs=1)
    for batch in source.stream([before, after, written], 16):
        torch.testing.assert_close(batch[before] + batch[written], batch[after])


def test_the_model_runs_no_further_than_needed(
    tiny_model: Any, mel: Mel, tokens: list[Tensor]
) -> None:
    seen: list[str] = []
    last = ["encoder.blocks.1.hook_resid_pre", "decoder.blocks.2.hook_resid_pre"]
    watch = [(name, lambda value, hook: seen.append(hook.name)) for name in last]
    source = ModelActivations(tiny_model, mel, tokens=tokens, n_epochs=1)
    with tiny_model.hooks(watch):
        list(source.stream([ENCODER], 64))
        assert seen == []
        list(source.stream([ENCODER, DECODER], 64))
    assert set(seen) == {last[0]}


def test_epochs_differ_and_a_seed_repeats_them(tiny_model: Any, mel: Mel) -> None:
    def vectors(seed: int) -> Tensor:
        source = ModelActivations(tiny_model, mel, buffer_size=30, n_epochs=2)
        return torch.cat([batch[ENCODER] for batch in source.stream([ENCODER], 8, seed=seed)])

    one = vectors(0)
    n = sum([5, 30, 17, 1, 23])
    assert len(one) == 2 * n
    assert not torch.equal(one[:n], one[n:])
    assert torch.equal(one, vectors(0))
    other = vectors(1)
    assert not torch.equal(one, other)


def test_skipped_buffers_are_not_computed(
    tiny_model: Any,
    mel: Mel,
    tokens: list[Tensor],
    monkeypatch: pytest.MonkeyPatch,
    without_shape_checks: None,
) -> None:
    def make() -> ModelActivations:
        return ModelActivations(tiny_model, mel, tokens=tokens, buffer_size=20, n_together=1)

    whole = list(itertools.islice(make().stream([ENCODER, DECODER], 8, seed=2), 28))
    for skip in (1, 17, 25):
        rest = itertools.islice(make().stream([ENCODER, DECODER], 8, seed=2, skip=skip), 28 - skip)
        for one, other in zip(rest, whole[skip:], strict=True):
            assert one.keys() == other.keys()
            assert all(torch.equal(one[name], other[name]) for name in one)
    n_runs = 0
    run = type(tiny_model).run_with_cache

    def count(self: Any, *args: Any, **options: Any) -> Any:
        nonlocal n_runs
        n_runs += 1
        return run(self, *args, **options)

    monkeypatch.setattr(type(tiny_model), "run_with_cache", count)
    next(make().stream([ENCODER, DECODER], 8, seed=2, skip=25))
    assert n_runs <= 4


def test_autoencoders_train_on_a_model(
    tiny_model: Any, mel: Mel, tokens: list[Tensor], without_shape_checks: None
) -> None:
    source = ModelActivations(tiny_model, mel, tokens=tokens)
    assert isinstance(source, ActivationSource)
    cfgs = {
        name: TrainingConfig(TopKConfig(24, 32, name, k=4), n_vectors=n, batch_size=32, lr=1e-2)
        for name, n in ((ENCODER, 480), (DECODER, 120))
    }
    log: list[dict[str, Any]] = []
    trained = train_saes(cfgs, source, progress=False, on_log=log.append)
    for name in cfgs:
        first = next(line["fvu"] for line in log if line["sae"] == name)
        assert trained[name].cfg.metadata["training"]["fvu"] < 0.95 * first
    alone = train_sae(
        replace(cfgs[ENCODER], n_vectors=50), ModelActivations(tiny_model, mel), progress=False
    )
    assert alone.cfg.hook_name == ENCODER


def test_recordings_and_texts(tmp_path: Any) -> None:
    from hooked_whisper import HookedWhisper
    from hooked_whisper.digits import recordings

    model, shipped = HookedWhisper.from_pretrained("digits"), recordings()[:1]
    name = "decoder.blocks.3.hook_resid_post"
    audio, texts = [each.path for each in shipped], [" " + each.text for each in shipped]
    sources = {
        "texts": ModelActivations(model, audio, texts=texts, n_epochs=1),
        "transcripts": ModelActivations(model, [str(path) for path in audio], n_epochs=1),
    }
    rows = {key: rows_of(source.stream([name], 64), name) for key, source in sources.items()}
    n_tokens = sum(model.to_tokens(text).shape[1] for text in texts)
    assert len(rows["texts"]) == n_tokens
    torch.testing.assert_close(rows["texts"], rows["transcripts"], rtol=1e-4, atol=1e-4)


# What is refused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"recordings": []}, "there are no recordings"),
        ({"recordings": "speech.wav"}, "there is no file or folder 'speech.wav'"),
        ({"texts": [" one"]}, "5 recordings and 1 texts do not match"),
        ({"tokens": [], "texts": []}, "both texts and tokens"),
        ({"buffer_size": 0}, "buffer_size is 0"),
    ],
    ids=["none", "one path", "texts", "both", "buffer"],
)
def test_what_does_not_fit_together(
    change: dict[str, Any], message: str, tiny_model: Any, mel: Mel
) -> None:
    with pytest.raises(TrainingError, match=message):
        ModelActivations(tiny_model, **{"recordings": mel, **change})


def test_a_hook_without_vectors_is_refused_at_once(tiny_model: Any, mel: Mel) -> None:
    source = ModelActivations(tiny_model, mel)
    with pytest.raises(TrainingError, match=r"axes \[batch head query key\]; .* hook_resid_post"):
        source.stream(["encoder.blocks.0.attn.hook_pattern"], 8)
    with pytest.raises(TrainingError, match=r"axes \[batch d_model frame\]"):
        source.stream(["encoder.hook_conv1"], 8)
    with pytest.raises(HookNameError, match=r"encoder\.blocks\.7"):
        source.stream(["encoder.blocks.7.hook_resid_post"], 8)


def test_a_recording_that_cannot_be_used_is_named(tiny_model: Any, mel: Mel) -> None:
    source = ModelActivations(tiny_model, [mel[0], "nowhere.wav"])
    with pytest.raises(TrainingError, match=r"recording 1 cannot be used: .*nowhere\.wav"):
        list(itertools.islice(source.stream([ENCODER], 8), 3))
    with pytest.raises(TrainingError, match="is an array, which tells neither its rate"):
        ModelActivations(tiny_model, [mel.values[0]])
    with pytest.raises(TrainingError, match="the recordings are a stream"):
        ModelActivations(tiny_model, (path for path in ["nowhere.wav"]))


def test_tokens_that_the_model_lacks_are_refused(tiny_model: Any, mel: Mel) -> None:
    source = ModelActivations(tiny_model, mel, tokens=torch.full((5, 3), 999))
    with pytest.raises(TrainingError, match=r"recording \d cannot be used: .*999"):
        next(source.stream([DECODER], 8))
