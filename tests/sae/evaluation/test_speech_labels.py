"""Latents against what is said, when and by whom."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from hooked_whisper.digits import SpokenWord
from hooked_whisper.errors import InputError
from hooked_whisper.sae import (
    frame_labels,
    latents_by_speech,
    recording_labels,
    top_clips,
    word_labels,
)
from hooked_whisper.speech.mel import Mel

SITE = "encoder.blocks.0.hook_resid_post"


@dataclass
class Said:
    """A recording with what is known about it; the audio is noise."""

    audio: Any
    words: tuple[SpokenWord, ...] | None
    speaker: str | None = "theo"
    text: str = "said"


def noise(seed: int, seconds: float) -> tuple[Tensor, int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(int(seconds * 16_000), generator=generator) / 10, 16_000


@pytest.fixture
def said() -> list[Said]:
    one = (SpokenWord("one", 0.02, 0.1), SpokenWord("two", 0.1, 0.21))
    two = (SpokenWord("two", 0.0, 0.05), SpokenWord("one", 0.205, 0.26))
    return [
        Said(noise(0, 0.28), one),
        Said(noise(1, 0.3), two, "lucas"),
        Said(noise(2, 0.12), (), "lucas"),
    ]


def activations(model: Any, said: list[Said]) -> list[Tensor]:
    """The stream of each recording, run alone."""
    found = []
    for each in said:
        _, cache = model.run_with_cache(model.to_mel(each.audio), names_filter=SITE)
        found.append(cache[SITE][0])
    return found


def test_frames_are_labelled_by_the_middle_of_their_20_ms(said: list[Said]) -> None:
    labels = {each.name: each for each in frame_labels(said[:2], [14, 15])}
    word = labels["word"]
    names = [None if i < 0 else word.values[i] for i in word.ids.tolist()]
    # 0.1 s to 0.21 s holds the middles 0.11, ..., 0.19; 0.21 is not before the end.
    assert names[:14] == [None] + ["one"] * 4 + ["two"] * 5 + [None] * 4
    assert names[14:] == ["two"] * 2 + [None] * 8 + ["one"] * 3 + [None] * 2
    position = labels["position"]
    assert [position.values[i] for i in position.ids.tolist() if i >= 0] == (
        ["1"] * 4 + ["2"] * 5 + ["1"] * 2 + ["2"] * 3
    )
    assert labels["silence"].ids.tolist() == [int(name is None) for name in names]
    speaker = labels["speaker"]
    assert [speaker.values[i] for i in speaker.ids.tolist()] == ["theo"] * 14 + ["lucas"] * 15


def test_words_and_recordings_have_labels(said: list[Said]) -> None:
    word, position, speaker = word_labels(said)
    assert [word.values[i] for i in word.ids.tolist()] == ["one", "two", "two", "one"]
    assert [position.values[i] for i in position.ids.tolist()] == ["1", "2", "1", "2"]
    assert [speaker.values[i] for i in speaker.ids.tolist()] == ["theo", "theo", "lucas", "lucas"]
    named = {each.name: [each.values[i] for i in each.ids] for each in recording_labels(said)}
    assert named == {
        "speaker": ["theo", "lucas", "lucas"],
        "has one": ["yes", "yes", "no"],
        "has two": ["yes", "yes", "no"],
    }


@pytest.mark.parametrize("all_frames", [False, True], ids=["speech", "all frames"])
@pytest.mark.parametrize("batch_size", [1, 2])
def test_latents_are_those_of_plain_runs_pooled(
    all_frames: bool, batch_size: int, tiny_model: Any, said: list[Said], plain_sae: Any
) -> None:
    sae = plain_sae(24, 40)
    options: dict[str, Any] = {"batch_size": batch_size, "progress": False}
    found = latents_by_speech(sae, tiny_model, said, SITE, all_frames=all_frames, **options)
    n = [30, 30, 30] if all_frames else [14, 15, 6]
    assert found.n_positions == tuple(n)
    latents = [sae.encode(x) for x in activations(tiny_model, said)]

    def ordered(values: Tensor) -> Tensor:
        """The active ones, latent by latent, least active first."""
        return torch.cat([column[column > 0].sort().values for column in values.T])

    frames = torch.cat([f[:k] for f, k in zip(latents, n, strict=True)])
    assert found.frames.n_active.tolist() == (frames > 0).sum(0).tolist()
    torch.testing.assert_close(found.frames.activations, ordered(frames))
    spans = [(0, 1, 5), (0, 5, 11), (1, 0, 3), (1, 10, 13)]  # every position that a word touches
    words = torch.stack([latents[i][a:b].amax(0) for i, a, b in spans])
    assert found.words is not None
    torch.testing.assert_close(found.words.activations, ordered(words))
    whole = torch.stack([f[:k].amax(0) for f, k in zip(latents, n, strict=True)])
    torch.testing.assert_close(found.whole.activations, ordered(whole))


def test_a_latent_that_is_a_word_is_found(
    tiny_model: Any, said: list[Said], plain_sae: Any
) -> None:
    x = torch.cat([x[:n] for x, n in zip(activations(tiny_model, said), (14, 15, 6), strict=True)])
    is_one = torch.zeros(len(x), dtype=torch.bool)
    is_one[1:5] = is_one[14 + 10 : 14 + 13] = True
    sae = plain_sae(24, 30)
    # A direction that is high exactly on the frames of "one": there are more frames than
    # dimensions, so its best linear fit is only near; the latent's AUROC says how near.
    fit = torch.linalg.lstsq(torch.cat([x, torch.ones(len(x), 1)], 1), is_one.float()[:, None])
    sae.W_enc[:, 7], sae.b_enc[7] = fit.solution[:-1, 0], float(fit.solution[-1, 0])
    latents = latents_by_speech(sae, tiny_model, said, SITE, progress=False)
    found = latents.selectivity()
    (value, latent, score), *_ = found["word"].best()
    assert (value, latent) == ("one", 7) and score > 0.9
    in_words = latents.selectivity("word")
    assert float(in_words["word"].auroc[7, 0]) == 1.0
    assert in_words.n_vectors == 4
    whole = latents.selectivity("recording")
    assert set(whole.labels) == {"speaker", "has one", "has two"}


def test_what_cannot_be_told_is_said(
    tiny_model: Any, said: list[Said], plain_sae: Any, without_shape_checks: None
) -> None:
    sae = plain_sae(24, 30)
    with pytest.raises(InputError, match="recording 1 has neither words nor a speaker"):
        frame_labels([said[0], Said(said[0].audio, None, None)], [14, 14])
    with pytest.raises(InputError, match=r"'one' is from 0.3 to 0.2 s"):
        word_labels([Said(said[0].audio, (SpokenWord("one", 0.3, 0.2),))])
    with pytest.raises(InputError, match="no recording has words"):
        word_labels([Said(said[0].audio, None)])
    with pytest.raises(InputError, match="2 n_positions and 3 recordings"):
        frame_labels(said, [14, 14])
    with pytest.raises(InputError, match="level is 'letter'; it can be frame, word, recording"):
        latents_by_speech(sae, tiny_model, said, SITE, progress=False).selectivity("letter")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="is in the decoder, whose positions have no time"):
        latents_by_speech(sae, tiny_model, said, "decoder.blocks.0.hook_resid_post", progress=False)
    with pytest.raises(InputError, match="there are no recordings"):
        latents_by_speech(sae, tiny_model, [], SITE)


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_top_clips_are_the_greatest_of_all_recordings(
    batch_size: int, tiny_model: Any, said: list[Said], plain_sae: Any
) -> None:
    sae = plain_sae(24, 30)
    options: dict[str, Any] = {"n_top": 4, "least_apart_s": 0, "progress": False}
    found = top_clips(sae, tiny_model, said, [3, 11], SITE, batch_size=batch_size, **options)
    for latent in (3, 11):
        moments = [
            (float(f[pos, latent]), i, pos)
            for i, f in enumerate(map(sae.encode, activations(tiny_model, said)))
            for pos in range((14, 15, 6)[i])
            if f[pos, latent] > 0
        ]
        expected = sorted(moments, key=lambda m: (-m[0], m[1], m[2]))[:4]
        values = [each.value for each in found[latent]]
        assert values == pytest.approx([m[0] for m in expected], rel=1e-4)
        assert [(c.recording, round(c.start_s / 0.02)) for c in found[latent]] == [
            (i, pos) for _, i, pos in expected
        ]
        for clip in found[latent]:
            assert clip.end_s == pytest.approx(clip.start_s + 0.02)
            assert (clip.latent, clip.text) == (latent, "said")
            spoken = [
                w.word
                for w in said[clip.recording].words or ()
                if w.start_s <= clip.start_s + 0.01 < w.end_s
            ]
            assert clip.word == (spoken[0] if spoken else None)


def test_clips_of_silent_latents_of_padding_and_apart(
    tiny_model: Any, short_mel: Mel, plain_sae: Any
) -> None:
    sae = plain_sae(24, 30)
    sae.W_enc[:, 2], sae.b_enc[2] = 0, -1.0
    options: dict[str, Any] = {"n_top": 50, "progress": False}
    assert top_clips(sae, tiny_model, short_mel, 2, SITE, **options) == {2: []}
    sae.W_enc[:, 5], sae.b_enc[5] = 0, 1.0  # active everywhere
    found = top_clips(sae, tiny_model, short_mel, 5, SITE, least_apart_s=0.1, **options)[5]
    starts = [(each.recording, round(each.start_s / 0.02)) for each in found]
    assert sorted(starts) == [(0, 0), (0, 5), (0, 10), (1, 0), (1, 5), (1, 10), (1, 15)]
    few = top_clips(
        sae,
        tiny_model,
        short_mel,
        5,
        SITE,
        least_apart_s=0.1,
        batch_size=1,
        **options | {"n_top": 3},
    )[5]
    of_equals = [(each.recording, round(each.start_s / 0.02)) for each in few]
    assert of_equals == [(0, 0), (0, 5), (0, 10)], "of equals, the first ones"
    everywhere = top_clips(
        sae, tiny_model, short_mel, 5, SITE, least_apart_s=0, all_frames=True, **options
    )[5]
    assert len(everywhere) == 50
    assert found[0].name == "0" and found[0].text is None
    with pytest.raises(InputError, match=r"latents are \[30\]; this autoencoder has 0 to 29"):
        top_clips(sae, tiny_model, short_mel, [30], SITE)
    with pytest.raises(InputError, match="n_top is 0"):
        top_clips(sae, tiny_model, short_mel, [3], SITE, n_top=0)
