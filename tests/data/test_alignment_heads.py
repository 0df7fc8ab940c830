"""Heads that follow the speech are found where they were planted, and written in every form."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from hooked_whisper import HookedWhisper, HookedWhisperConfig
from hooked_whisper.data import AlignmentHeads, Recording, find_alignment_heads
from hooked_whisper.errors import RecordingsError

WORDS = "one two three four".split()
SMALL: dict[str, Any] = {
    "d_model": 24,
    "n_audio_layers": 1,
    "n_audio_heads": 4,
    "n_text_layers": 3,
    "n_text_heads": 4,
}
N_PROMPT, FIRST, SECOND, LATE = 2, (0, 1), (2, 3), (1, 0)
"""Two planted heads; and one that attends to a word when it reads it, not when it predicts it."""


EDGES_S = (0.0, 0.5, 1.1, 1.5, 2.4)


def recording(name: str, seconds: float) -> Recording:
    """Noise in which a word is said between each two of these times."""
    times = [
        [start, end, word] for (start, end), word in zip(pairwise(EDGES_S), WORDS, strict=True)
    ]
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(int(16_000 * seconds), generator=generator) / 10
    return Recording(name, (noise, 16_000), {"words": times}, " One, " + " ".join(WORDS[1:]))


RECORDINGS = [recording("a", 2.4), recording("b", 3.1)]


@pytest.fixture(scope="module")
def planted() -> Iterator[HookedWhisper]:
    """A random model in which two heads each know half of the words.

    Others of its heads know none; with some seeds one of these happens to gain a few ms.
    """
    cfg = HookedWhisperConfig.for_release("tiny.en", **SMALL, n_audio_ctx=200)
    torch.manual_seed(0)
    model = HookedWhisper(cfg).eval()
    rows = [0, 0, 1, 2, 3]  # the word of each row: " One" has a comma
    knows = {FIRST: ((0, 1), 0), SECOND: ((2, 3), 0), LATE: ((0, 1, 2, 3), 1)}

    def plant(value: Tensor, hook: Any) -> Tensor:
        value = value.clone()
        for (layer, head), (known, late) in knows.items():
            if layer != int(hook.name.split(".")[2]):
                continue
            value[:, head] = 1 / value.shape[-1]
            for row, word in enumerate(rows):
                if word in known:
                    start, stop = (round(50 * time) for time in EDGES_S[word : word + 2])
                    value[:, head, N_PROMPT - 1 + row + late] = 1e-6
                    value[:, head, N_PROMPT - 1 + row + late, start:stop] = 1 / (stop - start)
        return value

    with torch.no_grad(), model.hooks([("decoder.blocks.*.cross_attn.hook_pattern", plant)]):
        yield model


@pytest.fixture(scope="module")
def found(planted: HookedWhisper) -> AlignmentHeads:
    return find_alignment_heads(planted, RECORDINGS, progress=False)


def test_the_planted_heads_are_found_and_no_head_that_is_late(found: AlignmentHeads) -> None:
    assert found.pairs == [[*FIRST], [*SECOND]]
    assert found.times == "labels" and found.n_words == 8
    assert found.error_s < 0.05 < found.model_error_s
    assert found.errors_s[FIRST] > found.error_s
    best = found.scores.flatten().topk(2).indices.tolist()
    assert sorted(divmod(each, 4) for each in best) == [FIRST, SECOND]


def test_without_times_the_models_own_heads_give_them(planted: HookedWhisper) -> None:
    before = planted.alignment_heads
    planted.set_alignment_heads([FIRST, SECOND])
    try:
        bare = [Recording(each.id, each.audio, {}, each.text) for each in RECORDINGS]
        found = find_alignment_heads(planted, bare, progress=False)
    finally:
        planted.alignment_heads = before
    assert found.times == "model"
    assert {FIRST, SECOND} <= {(layer, head) for layer, head in found.pairs}


def test_every_form_is_what_its_reader_reads(found: AlignmentHeads, tmp_path: Any) -> None:
    import whisper
    from transformers import GenerationConfig

    cfg = HookedWhisperConfig.for_release("tiny.en", **SMALL)
    theirs = whisper.model.Whisper(cfg.dims)
    theirs.set_alignment_heads(found.to_openai())
    assert theirs.alignment_heads.to_dense().nonzero().tolist() == found.pairs
    generation = GenerationConfig(**found.to_huggingface())
    assert generation.alignment_heads == [[0, 1], [2, 3]]
    assert found.to_whisper_cpp() == "{ {0, 1}, {2, 3} }"
    found.save(tmp_path / "heads.json")
    for form in (found, tmp_path / "heads.json", found.mask):
        model = HookedWhisper(cfg)
        model.set_alignment_heads(form)
        assert torch.equal(model.alignment_heads.to_dense(), found.mask)


def test_they_show_themselves(found: AlignmentHeads, shown: Any) -> None:
    assert "0.1, 2.3" in repr(found) and "8 words" in repr(found)
    shown(found)


def test_recordings_that_tell_nothing_are_named(planted: HookedWhisper) -> None:
    other = Recording("other", RECORDINGS[0].audio, {"words": [[0, 1, "yes"]]}, " No.")
    with pytest.warns(UserWarning, match="1 of 3 recordings tell nothing .* 'other': 0 of the 1"):
        found = find_alignment_heads(planted, [*RECORDINGS, other], progress=False)
    assert found.n_words == 8
    with pytest.raises(RecordingsError, match="1 of 1 recordings tell nothing"):
        find_alignment_heads(planted, [other], progress=False)
