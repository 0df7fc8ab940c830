"""tiny.en from a path has OpenAI's alignment heads, and they are those that score best."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.alignment_heads import auroc, joined
from hooked_whisper import HookedWhisper
from hooked_whisper.data import find_alignment_heads

OFFICIAL = [[1, 0], [2, 0], [2, 5], [3, 0], [3, 1], [3, 2], [3, 3], [3, 4]]


def test_a_file_has_openais_heads(model: HookedWhisper) -> None:
    assert model.alignment_heads.to_dense().nonzero().tolist() == OFFICIAL


@pytest.mark.slow
def test_openais_heads_have_the_best_scores(model: HookedWhisper, speech: Path) -> None:
    folder = speech.parent / "fsdd" / "recordings"
    if not folder.is_dir():
        pytest.skip("fsdd/recordings is not in HOOKED_WHISPER_DATA")
    rng = np.random.default_rng(0)
    spoken = [joined(folder, each, rng, 0) for each in ("george", "lucas", "theo")]
    found = find_alignment_heads(model, spoken, progress=False)
    assert auroc(found.scores, model.alignment_heads.to_dense()) >= 0.95
    assert found.error_s <= found.model_error_s
