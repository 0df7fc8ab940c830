"""The cache: a mapping of tensors with named axes that can be saved and loaded."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from hooked_whisper.errors import CacheError, HookNameError
from hooked_whisper.hooks.cache import WhisperCache
from hooked_whisper.io import save_tensors
from hooked_whisper.speech.mel import Mel


@pytest.fixture(scope="module")
def cache(tiny_cfg: Any, make_model: Any, tiny_mel: Tensor, tiny_tokens: Tensor) -> WhisperCache:
    mel = Mel(tiny_mel, torch.tensor([60, 31]))
    with torch.no_grad():
        return make_model(tiny_cfg).run_with_cache(mel, tiny_tokens)[1]


def assert_same(first: WhisperCache, second: WhisperCache) -> None:
    assert list(first) == list(second)
    for name in first:
        assert torch.equal(first[name], second[name]), name
        assert first[name].dtype == second[name].dtype, name
        assert first.axes(name) == second.axes(name), name


class TestMapping:
    def test_is_a_mapping(self, cache: WhisperCache, tiny_model: Any) -> None:
        assert list(cache) == list(cache.keys()) == tiny_model.hook_names()
        assert len(cache) == len(list(cache.values())) == len(list(cache.items()))
        name, value = next(iter(cache.items()))
        assert cache[name] is value

    @pytest.mark.usefixtures("without_shape_checks")
    def test_contains(self, cache: WhisperCache) -> None:
        assert "encoder.hook_mel" in cache and ("decoder", 1, "pattern", "cross_attn") in cache
        for missing in ("encoder.hook_mell", ("encoder", 7, "pattern"), ("encoder",), 3, None):
            assert missing not in cache

    def test_get(self, cache: WhisperCache) -> None:
        assert cache.get("encoder.hook_mel") is cache["encoder.hook_mel"]
        assert cache.get("encoder.hook_mell") is None

    def test_cannot_be_changed_by_accident(self, cache: WhisperCache) -> None:
        with pytest.raises(TypeError, match="does not support item assignment"):
            cache["encoder.hook_mel"] = torch.zeros(1)  # type: ignore[index]

    @pytest.mark.parametrize(
        ("key", "name"),
        [
            (("encoder", 0, "pattern"), "encoder.blocks.0.attn.hook_pattern"),
            (("decoder", 1, "pattern", "cross_attn"), "decoder.blocks.1.cross_attn.hook_pattern"),
            (("decoder", -1, "resid_post"), "decoder.blocks.2.hook_resid_post"),
            (("decoder", 2, "post"), "decoder.blocks.2.mlp.hook_post"),
            (("encoder", "mel"), "encoder.hook_mel"),
            (("encoder", "normalized"), "encoder.ln_final.hook_normalized"),
        ],
        ids=str,
    )
    def test_shorthand(self, key: Any, name: str, cache: WhisperCache) -> None:
        assert cache[key] is cache[name]
        assert cache.full_name(key) == name
        assert cache.axes(key) == cache.axes(name)

    @pytest.mark.parametrize(
        ("key", "message"),
        [
            ("decoder.blocks.1.cross_attn.hook_patern", "Nearest: .*cross_attn.hook_pattern"),
            ("decoder.blocks.9.attn.hook_pattern", "decoder blocks 0 to 2"),
            (("encoder", 2, "pattern"), "encoder blocks 0 to 1"),
            (("encoder", 0, "pattern", "cross_attn"), "Nearest: .*hook_pattern"),
            (("decoder", 0, "scale"), "could be any of .*Add the part"),
            ("encoder.*", "no hook matches 'encoder"),
            (3, "no hook '3'"),
        ],
        ids=str,
    )
    @pytest.mark.usefixtures("without_shape_checks")
    def test_trap_2_a_name_that_is_not_there(
        self, key: Any, message: str, cache: WhisperCache
    ) -> None:
        with pytest.raises(HookNameError, match=message):
            cache[key]

    def test_a_name_that_was_not_kept(self, tiny_model: Any, tiny_mel: Tensor) -> None:
        _, cache = tiny_model.run_with_cache(tiny_mel, names_filter="*.hook_embed")
        assert list(cache) == ["encoder.hook_embed"]  # the decoder did not run
        with pytest.raises(HookNameError, match="no decoder blocks"):
            cache["decoder", 0, "pattern"]

    def test_axes(self, cache: WhisperCache) -> None:
        assert cache.axes("encoder.hook_mel") == ("batch", "mel", "frame")
        assert cache.axes(("decoder", 0, "pattern")) == ("batch", "head", "query", "key")
        assert cache.axes(("decoder", 0, "k", "cross_attn")) == ("batch", "key", "head", "d_head")
        assert cache.axes("decoder.hook_logits") == ("batch", "pos", "vocab")

    def test_axes_must_fit(self) -> None:
        with pytest.raises(CacheError, match=r"'a' has shape \(2, 3\).*\('batch',\)"):
            WhisperCache({"a": torch.zeros(2, 3)}, {"a": ("batch",)})

    def test_nbytes_and_repr(self, cache: WhisperCache) -> None:
        assert cache.nbytes == sum(4 * value.numel() for value in cache.values())
        assert (
            repr(cache) == f"WhisperCache({len(cache)} activations, {cache.nbytes / 2**20:.1f} MiB)"
        )

    def test_knows_the_length_of_the_sound(self, cache: WhisperCache, tiny_model: Any) -> None:
        assert cache.n_frames is not None and cache.n_frames.tolist() == [60, 31]
        _, of_tensor = tiny_model.run_with_cache(torch.zeros(1, 80, 60))
        assert of_tensor.n_frames is None


class TestSubset:
    @pytest.mark.parametrize(
        "names_filter",
        [
            "*.hook_pattern",
            ["decoder.hook_logits", ("encoder", 0, "q")],
            lambda name: "mlp" in name,
        ],
        ids=["glob", "list", "function"],
    )
    def test_chooses(self, names_filter: Any, cache: WhisperCache, tiny_model: Any) -> None:
        few = cache.subset(names_filter)
        assert list(few) == tiny_model.hook_names(names_filter)
        assert all(few[name] is cache[name] and few.axes(name) for name in few)
        assert few.n_frames is cache.n_frames

    def test_trap_2_nothing_chosen(self, cache: WhisperCache) -> None:
        with pytest.raises(HookNameError, match="no hook matches"):
            cache.subset("*.hook_patern")


class TestTo:
    def test_another_dtype_leaves_this_one(self, cache: WhisperCache) -> None:
        half = cache.to(dtype=torch.bfloat16)
        assert all(torch.equal(half[name], cache[name].bfloat16()) for name in cache)
        assert all(value.dtype == torch.float32 for value in cache.values())
        assert half.nbytes == cache.nbytes // 2
        assert half.n_frames is not None

    @pytest.mark.parametrize("device", ["meta", torch.device("meta")], ids=["text", "device"])
    def test_another_device(self, device: Any, cache: WhisperCache) -> None:
        moved = cache.to(device)
        assert all(value.device.type == "meta" for value in moved.values())
        assert all(value.dtype == torch.float32 for value in moved.values())

    def test_integers_stay_integers(self) -> None:
        cache = WhisperCache({"decoder.x": torch.tensor([1, 2])}, {"decoder.x": ("batch",)})
        assert cache.to(dtype=torch.float16)["decoder.x"].dtype == torch.int64


def rewrite(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        path.write_bytes(change(path.read_bytes()))

    return damage


class TestFile:
    def test_round_trip(self, cache: WhisperCache, tmp_path: Path) -> None:
        cache.save(tmp_path / "run.safetensors")
        loaded = WhisperCache.load(tmp_path / "run.safetensors")
        assert_same(loaded, cache)
        assert loaded.n_frames is not None and loaded.n_frames.tolist() == [60, 31]
        assert [each.name for each in tmp_path.iterdir()] == ["run.safetensors"]

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
    def test_keeps_the_dtype(self, dtype: torch.dtype, cache: WhisperCache, tmp_path: Path) -> None:
        typed = cache.subset("encoder.*").to(dtype=dtype)
        typed.save(str(tmp_path / "run"))
        assert_same(WhisperCache.load(str(tmp_path / "run")), typed)

    @pytest.mark.parametrize(
        "options",
        [{"pos_slice": -1, "frame_slice": 3}, {"remove_batch_dim": True}, {"frame_slice": [4, 1]}],
        ids=str,
    )
    def test_keeps_what_was_cut(
        self,
        options: dict[str, Any],
        tiny_model: Any,
        tiny_mel: Tensor,
        tiny_tokens: Tensor,
        tmp_path: Path,
    ) -> None:
        _, cut = tiny_model.run_with_cache(tiny_mel[:1], tiny_tokens[:1], **options)
        cut.save(tmp_path / "run")
        loaded = WhisperCache.load(tmp_path / "run")
        assert_same(loaded, cut)
        assert loaded.n_frames is None

    def test_gradients_too(
        self, tiny_model: Any, tiny_mel: Tensor, tiny_tokens: Tensor, tmp_path: Path
    ) -> None:
        _, cache = tiny_model.run_with_cache(tiny_mel, tiny_tokens, "loss", incl_bwd=True)
        cache.save(tmp_path / "run")
        assert_same(WhisperCache.load(tmp_path / "run"), cache)

    def test_a_loaded_cache_can_be_analysed(self, cache: WhisperCache, tmp_path: Path) -> None:
        cache.save(tmp_path / "run")
        loaded = WhisperCache.load(tmp_path / "run")
        assert torch.equal(loaded.decompose_resid(), cache.decompose_resid())

    def test_writing_over_a_file(self, cache: WhisperCache, tmp_path: Path) -> None:
        cache.save(tmp_path / "run")
        few = cache.subset("*.hook_embed")
        few.save(tmp_path / "run")
        assert_same(WhisperCache.load(tmp_path / "run"), few)

    @pytest.mark.parametrize(
        "damage",
        [
            rewrite(lambda data: data[: len(data) // 2]),
            rewrite(lambda data: data[:5]),
            rewrite(lambda data: b""),
            rewrite(lambda data: b"no safetensors at all"),
            Path.unlink,
            lambda path: (path.unlink(), path.mkdir()),
        ],
        ids=["cut short", "cut in the header", "empty", "text", "gone", "folder"],
    )
    def test_a_damaged_file(
        self, damage: Callable[[Path], Any], cache: WhisperCache, tmp_path: Path
    ) -> None:
        path = tmp_path / "run.safetensors"
        cache.subset("*.hook_embed").save(path)
        damage(path)
        with pytest.raises(CacheError, match=r"run\.safetensors cannot be read as an activation"):
            WhisperCache.load(path)

    @pytest.mark.parametrize("header", [None, {"format": "pt"}], ids=["no header", "of PyTorch"])
    def test_another_kind_of_safetensors(self, header: Any, tmp_path: Path) -> None:
        save_file({"weight": torch.zeros(2)}, tmp_path / "other", metadata=header)
        with pytest.raises(CacheError, match=r"other is no activation cache: .*cache\.save"):
            WhisperCache.load(tmp_path / "other")

    def test_one_without_a_checksum_says_so(self, cache: WhisperCache, tmp_path: Path) -> None:
        cache.save(tmp_path / "run")
        with safe_open(tmp_path / "run", framework="pt") as file:
            header = {**file.metadata(), "format": "hooked_whisper.cache/1"}
        del header["xxh3_128"]
        save_tensors(tmp_path / "old", cache, header)
        with pytest.warns(UserWarning, match="without a checksum: damage"):
            assert_same(WhisperCache.load(tmp_path / "old"), cache)

    def test_holds_plain_json(self, cache: WhisperCache, tmp_path: Path) -> None:
        cache.save(tmp_path / "run")
        with safe_open(tmp_path / "run", framework="pt") as file:
            header = file.metadata()
        assert json.loads(header["axes"])["encoder.hook_mel"] == ["batch", "mel", "frame"]
        assert json.loads(header["n_frames"]) == [60, 31]


class TestShown:
    def test_the_tree_holds_every_name_once_with_axes_and_size(
        self, cache: WhisperCache, shown: Callable[[Any], Any]
    ) -> None:
        found = shown(cache)
        rows = {row[0]: row[1:] for row in found.rows if row != ["hook", "axes", "size"]}
        assert len(found.rows) == len(cache) + 7, "one table outside of the blocks, one for each"
        assert sorted(rows) == sorted(cache)
        assert rows["decoder.blocks.1.cross_attn.hook_pattern"] == [
            "batch 2, head 3, query 7, key 30",
            "4.9 KiB",
        ]

    def test_blocks_are_closed_and_say_how_much_they_hold(
        self, cache: WhisperCache, shown: Callable[[Any], Any]
    ) -> None:
        found = shown(cache)
        folds = [("open" in each) for each in found.all("details")]
        assert folds == [True, False, False, True, False, False, False]
        block = cache.subset("decoder.blocks.0.*")
        n_kib = block.nbytes / 1024
        assert f"decoder.blocks.0: {len(block)} activations, {n_kib:.1f} KiB" in found.text
        assert f"{len(cache)} activations, {cache.nbytes / 1024:.1f} KiB" in found.text
        assert "torch.float32, cpu" in found.text
        assert "before the padding: 0.60, 0.31 s" in found.text

    def test_a_few_are_seen_at_once(self, cache: WhisperCache, shown: Callable[[Any], Any]) -> None:
        found = shown(cache.subset("*.cross_attn.hook_z").to(dtype=torch.float16))
        assert len(found.all("table")) == len(found.all("details")) == 1
        assert "open" in found.all("details")[0]
        assert "torch.float16, cpu" in found.text

    @pytest.mark.parametrize(
        "names", [[], ["x"], ["<b>&", "encoder", "encoder.blocks"]], ids=["none", "one", "odd"]
    )
    def test_any_names(self, names: list[str], shown: Callable[[Any], Any]) -> None:
        tensors = {name: torch.zeros(3) for name in names}
        found = shown(WhisperCache(tensors, dict.fromkeys(names, ("<i>",))))
        assert sorted(row[0] for row in found.rows if row[0] != "hook") == sorted(names)
        assert found.text.count("<i> 3") == len(names)
