"""What the study says of the digits model, where the truth is known."""

import importlib
from pathlib import Path
from typing import Any

import pytest

from hooked_whisper import HookedWhisper

DIGIT = 1


@pytest.fixture(scope="module")
def study() -> Any:
    """The example, as a module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[2] / "examples"))
        return importlib.import_module("patching_study")


@pytest.fixture(scope="module")
def model() -> Any:
    return HookedWhisper.from_pretrained("digits")


@pytest.fixture(scope="module")
def pairs(study: Any, model: Any) -> Any:
    """Two pairs of the first three sequences; to hear them all takes longer than all else."""
    some = study.spoken_sequences()[:3]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "spoken_sequences", lambda: some)
        found = study.make_pairs(model, 2)
    assert len(found) == 2 and found[0].clean_words != found[1].clean_words
    return found


@pytest.fixture(scope="module")
def swept(study: Any, model: Any, pairs: Any) -> Any:
    return study.sweep_cross_heads(model, pairs, DIGIT)


def test_the_time_of_a_digit_carries_that_digit_and_no_other(
    study: Any, model: Any, pairs: Any
) -> None:
    shares = study.patch_each_digit(model, pairs[:1], "encoder.blocks.2.hook_resid_post")
    assert shares == {2: 1.0}


def test_the_sweep_finds_the_heads_that_fetch_a_digit(
    study: Any, model: Any, pairs: Any, swept: Any
) -> None:
    ranked = [(place["layer"], place["head"]) for place in swept.best(24)]
    # Without the edges of the twelve found first the digit is gone; without those of the last
    # twelve, which are as many, it is not.
    gone, kept = study.knock_out(model, pairs, ranked[:12], DIGIT)
    assert gone == 1.0 and kept == 1.0
    gone, kept = study.knock_out(model, pairs, ranked[12:], DIGIT)
    assert gone == 0.0 and kept == 1.0


def test_a_head_found_first_looks_at_the_digit(
    study: Any, model: Any, pairs: Any, swept: Any
) -> None:
    best = swept.best(1)[0]
    start_s, end_s = study.slot(DIGIT)
    for pair in pairs:
        name = f"decoder.blocks.{best['layer']}.cross_attn.hook_pattern"
        _, cache = model.run_with_cache(pair.clean.mel, pair.clean.tokens, names_filter=name)
        row = cache[name][0, best["head"], study.N_PROMPT + DIGIT - 1]
        on_digit = row[round(start_s * 50) : round(end_s * 50)].sum().item()
        # The digit's second is a thirtieth of the window.
        assert on_digit > 5 / 30
