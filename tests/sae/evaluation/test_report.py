"""The report of an autoencoder shows every number that it holds."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from hooked_whisper.sae import evaluate_sae
from hooked_whisper.speech.mel import Mel

HOOK = "encoder.blocks.1.hook_resid_post"


def test_it_shows_every_number_with_a_column_for_each_extent(
    tiny_model: Any, short_mel: Mel, plain_sae: Any, shown: Callable[[Any], Any]
) -> None:
    report = evaluate_sae(
        plain_sae(24, 60), tiny_model, short_mel, hook_name=HOOK, tokens=[[3, 17, 5]] * 2,
        progress=False,
    )  # fmt: skip
    found = shown(replace(report, architecture="<b>"))
    assert f"<b>, 60 latents at {HOOK}, judged on 2 recordings" in found.text
    assert found.rows[0] == ["", "speech", "all"]
    table = report.to_dataframe().set_index("frames")
    rows = {row[0]: row[1:] for row in found.rows[1:]}
    numbers = [name for name in table.columns if name in rows and table[name].notna().all()]
    assert set(numbers) >= {"fvu", "l0", "dead_share", "ce_recovered", "kl_spliced", "n_vectors"}
    for name in numbers:
        for cell, value in zip(rows[name], table[name], strict=True):
            assert float(cell.replace(",", "")) == pytest.approx(value, rel=1e-3), name
    (picture,) = found.all("img")
    assert picture["alt"] == "how many latents have which density"
