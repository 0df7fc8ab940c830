"""The encoder is gone on from the last place before an autoencoder, with the same numbers."""

from typing import Any

import pytest

from hooked_whisper.sae import evaluate_sae
from hooked_whisper.sae.evaluation import evaluate, resume
from hooked_whisper.speech.mel import Mel

ROWS = [[3, 17, 5, 40, 99], [3, 8, 2]]


@pytest.mark.parametrize(
    ("name", "name_out", "stream", "block"),
    [
        ("encoder.blocks.0.hook_resid_post", None, "encoder.blocks.0.hook_resid_post", 1),
        ("encoder.blocks.1.hook_mlp_out", None, "encoder.blocks.1.hook_resid_pre", 1),
        (
            *("encoder.blocks.0.hook_resid_mid", "encoder.blocks.1.hook_mlp_out"),
            *("encoder.blocks.0.hook_resid_pre", 0),
        ),
        ("encoder.ln_final.hook_normalized", None, "encoder.blocks.1.hook_resid_post", 2),
        ("encoder.hook_embed", None, None, None),
        ("decoder.blocks.0.hook_mlp_out", None, None, None),
    ],
    ids=lambda value: str(value) if value else "",
)
def test_numbers_are_those_of_whole_runs(
    name: str,
    name_out: str | None,
    stream: str | None,
    block: int | None,
    tiny_model: Any,
    short_mel: Mel,
    plain_sae: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sae, found = plain_sae(24, 60), []
    real = resume.resume_of

    def judge() -> dict[str, Any]:
        options: dict[str, Any] = {"tokens": ROWS, "progress": False, "hook_name_out": name_out}
        return evaluate_sae(sae, tiny_model, short_mel, name, **options).to_dict()

    def noted(*of: Any) -> Any:
        found.append(real(*of))
        return found[-1]

    monkeypatch.setattr(evaluate, "resume_of", noted)
    resumed = judge()
    assert found[0] is None if stream is None else found[0][:2] == (stream, block)
    monkeypatch.setattr(evaluate, "resume_of", lambda *of: None)
    monkeypatch.setattr(resume, "KEPT_BYTES", 0)
    assert leaves(resumed) == pytest.approx(leaves(judge()), abs=1e-5, nan_ok=True)


def leaves(found: Any, name: str = "") -> dict[str, float]:
    """Every number of a report."""
    if isinstance(found, dict):
        parts = (leaves(each, f"{name}.{key}") for key, each in found.items())
        return {key: value for part in parts for key, value in part.items()}
    return {name: found} if isinstance(found, float) else {}
