"""What a harvest stores is what a plain loop over `run_with_cache` finds."""

import json
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from hooked_whisper.data import Recording
from hooked_whisper.errors import (
    HookNameError,
    InputError,
    RecordingsError,
    StoreError,
    StoreMismatchError,
)
from hooked_whisper.store import ActivationStore, verify_store

Harvest = Callable[..., ActivationStore]
RESID = "encoder.blocks.*.hook_resid_post"


def loop(model: Any, paths: list[Path], name: str, tokens: Any = None) -> list[torch.Tensor]:
    """The activation of each recording alone, without its batch axis, the padding included."""
    found = []
    for number, path in enumerate(paths):
        row = None if tokens is None else torch.tensor([tokens[number]])
        _, cache = model.run_with_cache(model.to_mel(path).values, row, names_filter=name)
        found.append(cache[name][0])
    return found


def n_positions(path: Path) -> int:
    return -(-soundfile.info(path).frames // 320)


@pytest.mark.parametrize(
    "name", ["encoder.blocks.0.hook_resid_post", "encoder.blocks.1.mlp.hook_post"]
)
def test_rows_are_those_of_a_plain_loop(
    small_harvest: Harvest, tiny_model: Any, clips: Path, tmp_path: Path, name: str
) -> None:
    store = small_harvest(clips, tmp_path / "store", [name, "encoder.ln_final.hook_normalized"])
    paths = sorted(clips.iterdir())
    for number, alone in enumerate(loop(tiny_model, paths, name)):
        expected = alone[: n_positions(paths[number])]
        found = store.of_recording(number, name)[name]
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "per_position", "to_rows"),
    [
        ("encoder.hook_mel", 2, lambda value: value.T),
        ("encoder.hook_conv1", 2, lambda value: value.T),
        ("encoder.hook_conv2", 1, lambda value: value.T),
        ("encoder.blocks.1.attn.hook_z", 1, lambda value: value),
        ("encoder.blocks.1.attn.hook_pattern", 1, lambda value: value.transpose(0, 1)),
        ("encoder.blocks.1.ln1.hook_scale", 1, lambda value: value),
    ],
)
def test_every_shape_of_activation_becomes_rows(
    small_harvest: Harvest,
    tiny_model: Any,
    clips: Path,
    tmp_path: Path,
    name: str,
    per_position: int,
    to_rows: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    store = small_harvest(clips, tmp_path / "store", name, frames="all")
    alone = loop(tiny_model, [clips / "clip04.wav"], name)[0]
    found = store.of_recording("clip04.wav", name)[name]
    assert len(found) == per_position * tiny_model.cfg.n_audio_ctx
    torch.testing.assert_close(found, to_rows(alone), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("dtype", "stored"), [("fp16", "float16"), ("bf16", "bfloat16")])
def test_half_precision(
    small_harvest: Harvest, clips: Path, tmp_path: Path, dtype: str, stored: str
) -> None:
    full = small_harvest(clips, tmp_path / "full")
    half = small_harvest(clips, tmp_path / "half", dtype=dtype)
    assert half.dtype == getattr(torch, stored)
    for name in full.hook_names:
        expected = full.rows(name, slice(None))[name].to(half.dtype)
        assert torch.equal(half.rows(name, slice(None))[name], expected)


def test_values_beyond_half_precision_are_refused(
    harvest_with: Harvest, fresh_model: Any, clips: Path, tmp_path: Path
) -> None:
    with torch.no_grad():
        fresh_model.encoder.blocks[0].mlp.fc_out.bias += 1e5
    with pytest.raises(StoreError, match=r"beyond what float16 can hold.*dtype=\"bf16\""):
        harvest_with(fresh_model, clips, tmp_path / "store", dtype="fp16")


def tokens_of(number: int) -> tuple[int, ...]:
    return tuple((7 * number + place) % 101 for place in range(2 + number % 5))


@pytest.fixture
def tokened(clips: Path) -> list[Recording]:
    """Recordings with tokens of different lengths, as the tiny vocabulary has no text."""
    return [
        Recording(path.name, str(path), {"parity": number % 2}, tokens=tokens_of(number))
        for number, path in enumerate(sorted(clips.iterdir()))
    ]


@pytest.mark.parametrize(
    "name", ["decoder.blocks.1.hook_resid_post", "decoder.blocks.2.cross_attn.hook_pattern"]
)
def test_the_decoders_rows_are_those_of_a_plain_loop(
    small_harvest: Harvest,
    tiny_model: Any,
    clips: Path,
    tokened: list[Recording],
    tmp_path: Path,
    name: str,
) -> None:
    store = small_harvest(tokened, tmp_path / "store", [name, RESID])
    paths, tokens = sorted(clips.iterdir()), [tokens_of(number) for number in range(24)]
    for number, alone in enumerate(loop(tiny_model, paths, name, tokens)):
        alone = alone.transpose(0, 1) if name.endswith("pattern") else alone
        found = store.of_recording(number, name)[name]
        torch.testing.assert_close(found, alone, atol=1e-5, rtol=1e-5)
        where = store.where(name, store.rows_of(number, name))
        assert where.token is not None
        assert where.token.tolist() == list(tokens[number])
        assert where.pos.tolist() == list(range(len(tokens[number])))
        assert set(where.recording.tolist()) == {number}
    assert store.n_rows(RESID) == sum(map(n_positions, paths))


def test_what_the_decoder_reads_from_the_recording_is_stored_by_position(
    small_harvest: Harvest, tiny_model: Any, clips: Path, tokened: list[Recording], tmp_path: Path
) -> None:
    name = "decoder.blocks.0.cross_attn.hook_k"
    store = small_harvest(tokened, tmp_path / "store", name)
    alone = loop(tiny_model, [clips / "clip05.wav"], name, [tokens_of(5)])[0]
    expected = alone[: n_positions(clips / "clip05.wav")]
    torch.testing.assert_close(store.of_recording(5, name)[name], expected, atol=1e-5, rtol=1e-5)


def test_the_decoders_own_patterns_have_no_fixed_width(
    small_harvest: Harvest, tokened: list[Recording], tmp_path: Path
) -> None:
    with pytest.raises(StoreError, match="as wide as the text is long"):
        small_harvest(tokened, tmp_path / "store", "decoder.blocks.0.attn.hook_pattern")


@pytest.mark.parametrize(
    ("hooks", "last", "behind"),
    [
        ("encoder.blocks.0.hook_resid_post", "encoder.blocks.0.", "encoder.blocks.1."),
        ("encoder.hook_embed", "encoder.hook_embed", "encoder.blocks.0."),
        ("decoder.blocks.1.hook_resid_pre", "decoder.blocks.1.", "decoder.blocks.2."),
        ("encoder.ln_final.hook_normalized", "encoder.ln_final.", "decoder."),
    ],
)
def test_the_model_stops_behind_the_last_hook(
    small_harvest: Harvest,
    tiny_model: Any,
    tokened: list[Recording],
    tmp_path: Path,
    hooks: str,
    last: str,
    behind: str,
) -> None:
    fired: set[str] = set()
    watch = [(tiny_model.hook_names(), lambda value, hook: fired.add(hook.name))]
    with tiny_model.hooks(watch):
        small_harvest(tokened[:2], tmp_path / "store", hooks, note="watched")
    assert any(name.startswith(last) for name in fired)
    assert not any(name.startswith(behind) for name in fired)


def test_long_recordings_are_split_cut_or_skipped(
    small_harvest: Harvest, tiny_model: Any, tmp_path: Path
) -> None:
    samples = 0.1 * np.random.default_rng(0).standard_normal(2 * 9600 + 3200)
    soundfile.write(tmp_path / "long.wav", samples, 16_000, subtype="FLOAT")
    sources = [(samples.astype(np.float32), 16_000), (np.zeros(4000, np.float32), 16_000)]
    name = "encoder.blocks.1.hook_resid_post"
    split = small_harvest(sources, tmp_path / "split", name)
    assert split.n_rows(name) == 30 + 30 + 10 + 13
    where = split.where(name, split.rows_of(0, name))
    torch.testing.assert_close(where.start_s, 0.02 * torch.arange(70, dtype=torch.float64))
    parts = [samples[start : start + 9600] for start in (0, 9600, 19200)]
    alone = [
        tiny_model.run_with_cache(
            tiny_model.to_mel(part, rate_hz=16_000).values, names_filter=name
        )[1][name][0]
        for part in parts
    ]
    expected = torch.cat([alone[0], alone[1], alone[2][:10]])
    found = split.of_recording(0, name)[name]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    cut = small_harvest(sources, tmp_path / "cut", name, long="cut")
    assert len(cut.rows_of(0, name)) == 30
    skip = small_harvest(sources, tmp_path / "skip", name, long="skip")
    assert "1.40 s are longer than the window of 0.6 s" in skip.skipped[0]["reason"]


def test_a_text_does_not_say_which_window_it_is_in(small_harvest: Harvest, tmp_path: Path) -> None:
    both = [
        Recording("long", (np.zeros(20_000, np.float32), 16_000), tokens=(1, 2)),
        Recording("short", (np.zeros(4000, np.float32), 16_000), tokens=(1, 2)),
        Recording("no text", (np.zeros(4000, np.float32), 16_000), tokens=(1,) * 21),
    ]
    store = small_harvest(both, tmp_path / "store", "decoder.hook_embed")
    assert [each["id"] for each in store.skipped] == ["long", "no text"]
    assert "which part of the text" in store.skipped[0]["reason"]
    assert "the decoder has 20 positions" in store.skipped[1]["reason"]


def test_a_stream_without_a_length(
    small_harvest: Harvest, clips: Path, tmp_path: Path, contents_of: Any
) -> None:
    paths = sorted(clips.iterdir())
    store = small_harvest((each for each in paths), tmp_path / "stream")
    listed = small_harvest(paths, tmp_path / "list")
    files = contents_of(tmp_path / "stream")
    for name, data in contents_of(tmp_path / "list").items():
        assert name == "manifest.json" or files[name] == data
    assert store.n_recordings == listed.n_recordings == 24
    with pytest.raises(StoreMismatchError, match=r"recordings that are not in this harvest"):
        small_harvest((each for each in paths[:23]), tmp_path / "stream")
    with pytest.raises(StoreMismatchError, match="shards of more than the 20 recordings"):
        small_harvest((each for each in paths[:20]), tmp_path / "stream")


CHANGES: dict[str, dict[str, Any]] = {
    "dtype": {"dtype": "bf16"},
    "hooks": {"hooks": "encoder.blocks.0.hook_resid_post"},
    "frames": {"frames": "all"},
    "long": {"long": "cut"},
    "batch_size": {"batch_size": 3},
    "recordings_per_shard": {"recordings_per_shard": 4},
    "note": {"note": "again"},
}


@pytest.mark.parametrize("what", CHANGES)
def test_two_harvests_never_share_a_folder(
    small_harvest: Harvest, clips: Path, tmp_path: Path, what: str
) -> None:
    small_harvest(clips / "clip00.wav", tmp_path / "store")
    with pytest.raises(StoreMismatchError, match=rf"another harvest:.*{what} is"):
        small_harvest(clips / "clip00.wav", tmp_path / "store", **CHANGES[what])


def test_other_weights_or_recordings_are_another_harvest(
    harvest_with: Harvest, clips: Path, tmp_path: Path, fresh_model: Any
) -> None:
    harvest_with(fresh_model, clips / "clip00.wav", tmp_path / "store")
    with pytest.raises(StoreMismatchError, match="recordings is"):
        harvest_with(fresh_model, clips / "clip01.wav", tmp_path / "store")
    with torch.no_grad():
        fresh_model.encoder.conv1.bias[0] += 1e-3
    with pytest.raises(StoreMismatchError, match=r"model is.*xxh3_128"):
        harvest_with(fresh_model, clips / "clip00.wav", tmp_path / "store")


def test_a_folder_with_other_files_is_left_alone(
    small_harvest: Harvest, clips: Path, tmp_path: Path
) -> None:
    (tmp_path / "thesis.txt").write_text("important")
    with pytest.raises(StoreMismatchError, match=r"holds other files \(thesis.txt\)"):
        small_harvest(clips, tmp_path)


def test_hooks_on_the_model_must_be_explained(
    small_harvest: Harvest, tiny_model: Any, clips: Path, tmp_path: Path
) -> None:
    with tiny_model.hooks([("encoder.hook_embed", lambda value, hook: value * 2)]):
        with pytest.raises(StoreError, match=r"'encoder.hook_embed' has hooks.*note="):
            small_harvest(clips / "clip00.wav", tmp_path / "store")
        small_harvest(clips / "clip00.wav", tmp_path / "store", note="embedding doubled")
    assert json.loads((tmp_path / "store/manifest.json").read_text())["identity"]["note"] == (
        "embedding doubled"
    )


def test_a_users_hook_in_the_last_block_sees_all_of_it(
    small_harvest: Harvest, tiny_model: Any, clips: Path, tmp_path: Path
) -> None:
    """Nobody reads the padding behind the last block, and it is left out; unless someone does."""
    seen = []

    def double_the_end(value: torch.Tensor, hook: Any) -> torch.Tensor:
        seen.append(tuple(value.shape))
        return torch.cat([value[:, :-3], 2 * value[:, -3:]], dim=1)

    name = "encoder.blocks.1.hook_resid_mid"
    with tiny_model.hooks([(name, double_the_end)]):
        small_harvest(sorted(clips.glob("*.wav"))[:2], tmp_path / "store", note="the end doubled")
    assert seen == [(2, tiny_model.cfg.n_audio_ctx, tiny_model.cfg.d_model)]


BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "no such hook": ({"hooks": "encoder.blocks.9.hook_resid_post"}, HookNameError, "blocks 0 to 1"),
    "dtype": ({"dtype": "int8"}, StoreError, "one of fp32, fp16, bf16"),
    "frames": ({"frames": "some"}, InputError, "'speech' or 'all'"),
    "text": ({"text": "both"}, InputError, "'label' or 'transcript'"),
    "long": ({"long": "no"}, InputError, "'split' or 'cut' or 'skip'"),
    "batch_size": ({"batch_size": 0}, InputError, "positive integer"),
    "no text": ({"hooks": "decoder.hook_embed"}, InputError, "integer tensor"),
}


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize("what", BAD)
def test_bad_options_are_refused_before_anything_is_written(
    small_harvest: Harvest, clips: Path, tmp_path: Path, what: str
) -> None:
    options, error, match = BAD[what]
    with pytest.raises(error, match=match):
        small_harvest(clips, tmp_path / "store", **options)
    assert not (tmp_path / "store").exists()


def test_mels_are_let_go_when_the_model_has_seen_them(
    small_harvest: Harvest, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Peak memory must not grow with the recordings of a shard, or of a harvest."""
    from hooked_whisper.store.shard_writer import ShardWriter

    real, mels, n_alive = ShardWriter._windows, [], []

    def watched(self: ShardWriter, loaded: Any) -> Any:
        mels.append(weakref.ref(loaded.mels))
        n_alive.append(sum(each() is not None for each in mels))
        return real(self, loaded)

    monkeypatch.setattr(ShardWriter, "_windows", watched)
    small_harvest(clips, tmp_path / "store", recordings_per_shard=24, batch_size=2)
    assert len(mels) == 24
    assert max(n_alive) <= 4


def test_rows_beyond_the_memory_wait_on_the_disk(
    small_harvest: Harvest,
    clips: Path,
    tmp_path: Path,
    contents_of: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from hooked_whisper.store import shards

    small_harvest(clips, tmp_path / "memory")
    monkeypatch.setattr(shards, "SPILL_BYTES", 3000)
    small_harvest(clips, tmp_path / "disk")
    assert contents_of(tmp_path / "disk") == contents_of(tmp_path / "memory")


@pytest.fixture(scope="module")
def digits_store(tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    """Two recordings of digits, teacher-forced."""
    from hooked_whisper import HookedWhisper
    from hooked_whisper.digits import recordings
    from hooked_whisper.store import harvest

    hooks = ["encoder.blocks.0.hook_resid_post", "decoder.blocks.3.hook_resid_post"]
    folder = tmp_path_factory.mktemp("digits") / "store"
    model = HookedWhisper.from_pretrained("digits")
    return harvest(model, recordings()[:2], hooks, folder, batch_size=2, n_workers=0)


def test_text_becomes_tokens_as_whisper_writes_it(digits_store: ActivationStore) -> None:
    name = "decoder.blocks.3.hook_resid_post"
    where = digits_store.where(name, digits_store.rows_of(0, name))
    assert where.token is not None
    assert where.token.tolist() == [50258, 50259, 50359, 50363, 1045, 472, 1451]  # three one four
    assert verify_store(digits_store.folder) == {}


def test_labels_follow_the_time(digits_store: ActivationStore) -> None:
    name = "encoder.blocks.0.hook_resid_post"
    rows = digits_store.rows_of(0, name)
    digits = digits_store.labels("digit", name, rows)
    where = digits_store.where(name, rows)
    words = next(digits_store.recordings()).labels["digit"]
    for start_s, end_s, word in words:
        inside = [
            digit
            for digit, moment in zip(digits, (where.start_s + 0.01).tolist(), strict=True)
            if start_s <= moment < end_s
        ]
        assert set(inside) == {word}
        assert len(inside) == pytest.approx((end_s - start_s) / 0.02, abs=1)
    assert digits[0] is None
    assert set(digits_store.labels("speaker", name, rows)) == {"jackson"}


def test_own_transcripts(tmp_path: Path) -> None:
    from hooked_whisper import HookedWhisper
    from hooked_whisper.digits import recordings
    from hooked_whisper.store import harvest

    model, name = HookedWhisper.from_pretrained("digits"), "decoder.blocks.0.hook_resid_post"
    first = recordings()[0]
    store = harvest(model, [first.path], name, tmp_path / "s", text="transcript", n_workers=0)
    assert next(store.recordings()).text == first.text
    tokens = model.to_tokens(" " + first.text)
    _, cache = model.run_with_cache(model.to_mel(first.path).values, tokens, names_filter=name)
    found = store.rows(name, slice(None), dtype=torch.float32)[name]
    torch.testing.assert_close(found, cache[name][0], atol=2e-3, rtol=2e-3)


def test_files_without_text_need_a_transcript(tmp_path: Path) -> None:
    from hooked_whisper import HookedWhisper
    from hooked_whisper.digits import recordings
    from hooked_whisper.store import harvest

    model = HookedWhisper.from_pretrained("digits")
    with pytest.raises(RecordingsError, match='text="transcript"'):
        harvest(model, recordings()[0].path, "decoder.hook_embed", tmp_path / "store")
