"""An encoder that sees less than its window, against openai-whisper's blocks on what it sees."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from hooked_whisper.errors import StoreError
from hooked_whisper.store import ActivationStore, shard_writer

Harvest = Callable[..., ActivationStore]


@pytest.mark.parametrize("last", ["encoder.blocks.1.hook_resid_post", "encoder.ln_final.*"])
def test_blocks_see_the_sound_and_some_padding(
    last: str,
    small_harvest: Harvest,
    tiny_model: Any,
    reference_model: Any,
    clips: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shard_writer, "PADDING_SEEN", 4)
    paths = [clips / f"clip{number:02d}.wav" for number in (3, 20, 23)]
    names = ["encoder.hook_conv2", "encoder.blocks.0.mlp.hook_post", last]
    store = small_harvest(paths, tmp_path / "store", names, frames="approximate")
    assert store.identity["frames"] == "approximate"
    encoder = reference_model.encoder
    for number, path in enumerate(paths):
        mel = tiny_model.to_mel(path)
        n = int(mel.n_positions)
        with torch.no_grad():
            conv = F.gelu(encoder.conv2(F.gelu(encoder.conv1(mel.values))))
            x = (conv.mT + encoder.positional_embedding)[:, : n + 4]
            for block in encoder.blocks:
                x = block(x)
            x = encoder.ln_post(x) if "ln_final" in last else x
            whole = encoder(mel.values)
        found = store.of_recording(number, "*")
        assert [len(rows) for rows in found.values()] == [n] * len(found)
        torch.testing.assert_close(found[names[0]], conv[0].T[:n], atol=1e-5, rtol=1e-5)
        if "ln_final" in last:
            own = found["encoder.ln_final.hook_normalized"]
            is_whole = n + 4 >= tiny_model.cfg.n_audio_ctx
            assert torch.allclose(own, whole[0, :n], atol=1e-5) == is_whole
        else:
            own = found[last]
        torch.testing.assert_close(own, x[0, :n], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["decoder.blocks.0.hook_resid_post", "encoder.*.hook_pattern"])
def test_hooks_that_need_the_whole_window_are_refused(
    name: str, small_harvest: Harvest, clips: Path, tmp_path: Path
) -> None:
    with pytest.raises(StoreError, match=r"needs the whole window.*frames=\"speech\""):
        small_harvest(clips, tmp_path / "store", name, frames="approximate")
    assert not (tmp_path / "store").exists()
