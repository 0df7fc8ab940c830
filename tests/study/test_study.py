"""A study from recordings to a report: what a user finds in the folder, and what is refused."""

import html
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from hooked_whisper.digits import recordings
from hooked_whisper.errors import (
    HookNameError,
    InputError,
    RecordingsError,
    ReportError,
    SAEConfigError,
    SAEFileError,
    SpliceError,
    StoreBusyError,
    StoreMismatchError,
)
from hooked_whisper.io import lock_folder
from hooked_whisper.sae import TopKConfig, TopKSAE
from hooked_whisper.study import Study, study
from hooked_whisper.study.autoencoder import in_place
from hooked_whisper.study.run import split

SECTIONS = ("transcripts", "residual", "encoder_attention", "decoder_attention", "features")


def text_of(page: Path) -> str:
    """What a reader sees of a page."""
    found = page.read_text(encoding="utf-8")
    found = re.sub(r"<style>.*?</style>|data:[^\"]*", "", found, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", found)).split())


def test_the_report_has_every_finding_of_the_numbers(
    digits_study: Study, report_json: dict[str, Any]
) -> None:
    shown = text_of(digits_study.report)
    findings = [
        finding
        for name in SECTIONS
        for finding in report_json["sections"][name]["findings"].values()
    ]
    assert findings == digits_study.findings
    assert len(findings) > 18
    for finding in findings:
        assert " ".join(finding.split()) in shown
        assert re.search(r"\d", finding), "a finding has numbers"
        assert not re.search(r"\bnan\b|\bnone\b(?! of)", finding), finding


def test_every_claim_of_the_post_has_its_verdict_beside_it(
    digits_study: Study, report_json: dict[str, Any]
) -> None:
    shown = text_of(digits_study.report)
    claims = {
        name: claim
        for section in report_json["sections"].values()
        for name, claim in section["claims"].items()
    }
    assert set(claims) == {
        "residual_histogram",
        "residual_statistics",
        "encoder_widths",
        "encoder_entropy",
        "encoder_entropy_window",
    }
    for claim in claims.values():
        assert f"The post: {claim['post']}" in shown
        assert f"{claim['verdict']} ; {claim['because']}" in shown
    assert claims["residual_statistics"]["verdict"] == "agrees"
    assert claims["residual_histogram"]["verdict"] == "disagrees"


def test_the_json_says_what_was_studied_and_with_what(report_json: dict[str, Any]) -> None:
    assert report_json["format"] == "hooked_whisper.study/1"
    assert report_json["model"]["name"] == "digits"
    assert len(report_json["model"]["xxh3_128"]) == 32
    assert report_json["settings"]["n_latents"] == 64
    assert {"hooked-whisper", "python", "torch"} <= set(report_json["versions"])
    heard = [(each["id"], each["transcript"]) for each in report_json["recordings"]]
    assert heard == [("jackson-3-1-4.flac", "three one four"), ("george-7.flac", "seven")]
    assert set(report_json["sections"]) == set(SECTIONS)
    assert report_json["sections"]["transcripts"]["numbers"]["wer"] == 0


def test_a_recording_that_is_no_audio_is_skipped_and_told_of(
    digits_study: Study, report_json: dict[str, Any]
) -> None:
    (skipped,) = report_json["skipped"]
    assert skipped["id"].endswith("broken.wav")
    assert skipped in digits_study.skipped
    shown = text_of(digits_study.report)
    assert "1 more could not be used" in shown
    assert skipped["reason"] in shown


def test_the_report_needs_no_network_and_every_picture_is_described(digits_study: Study) -> None:
    found = digits_study.report.read_text(encoding="utf-8")
    sources = re.findall(r'<img src="([^"]{5})[^"]*" alt="([^"]*)"', found)
    assert len(sources) >= 12
    assert all(source == "data:" and len(alt) > 30 for source, alt in sources)
    assert "<script" not in found
    assert not re.search(r'(src|href)="https?://(?!www\.lesswrong\.com)', found)
    for name in re.findall(r'href="([^"#:]+)"', found):
        assert (digits_study.folder / name).exists(), name


def test_pages_of_features_and_attention_are_linked(digits_study: Study) -> None:
    found = digits_study.report.read_text(encoding="utf-8")
    for name in ("features.html", "attention.html"):
        assert f'href="{name}"' in found
        assert (digits_study.folder / name).stat().st_size > 10_000


def test_a_finished_study_leaves_the_autoencoder_and_no_activations(digits_study: Study) -> None:
    from hooked_whisper.sae import load_sae

    assert load_sae(digits_study.folder / "sae").cfg.d_sae == 64
    assert not (digits_study.folder / "activations").exists()
    assert repr(digits_study).startswith("Study(")
    assert digits_study.to_dict()["format"] == "hooked_whisper.study/1"
    assert digits_study.to_dict() == json.loads(digits_study.numbers.read_text(encoding="utf-8"))


def test_a_report_is_not_overwritten_unnoticed(digits_model: Any, digits_study: Study) -> None:
    before = digits_study.report.read_bytes()
    with pytest.raises(ReportError, match=r"holds report.html of another run.*overwrite=True"):
        study(digits_model, recordings()[:1], digits_study.folder, progress=False)
    assert digits_study.report.read_bytes() == before


def test_a_small_random_model_is_studied_too(small_model: Any, noise: Any, tmp_path: Path) -> None:
    found = study(
        small_model, noise, tmp_path, n_latents=16, k=4, n_vectors=500, pages=False, progress=False
    )
    numbers = json.loads(found.numbers.read_text(encoding="utf-8"))["sections"]
    assert numbers["decoder_attention"]["numbers"]["n_clips"] == 3
    assert numbers["encoder_attention"]["claims"]["encoder_entropy"]["verdict"] == "cannot tell"
    quality = numbers["features"]["numbers"]["quality"]
    assert "recovered" not in quality
    assert (quality["n_recordings"], quality["held_out"]) == (1, True)
    assert all(not point.is_hooked for point in small_model.hook_dict.values())
    # Again, in place of the first: the same numbers.
    again = study(
        small_model,
        noise,
        tmp_path,
        n_latents=16,
        k=4,
        n_vectors=500,
        pages=False,
        overwrite=True,
        progress=False,
    )
    assert json.loads(again.numbers.read_text(encoding="utf-8"))["sections"] == numbers


def test_what_an_interrupted_run_left_is_used_or_refused_or_replaced(
    small_model: Any, noise: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"n_latents": 16, "k": 4, "pages": False, "progress": False}

    def broken_off(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("hooked_whisper.study.autoencoder.Autoencoder.judge", broken_off)
        with pytest.raises(KeyboardInterrupt):
            study(small_model, noise[1:], tmp_path, n_vectors=64, **options)
    (shard,) = tmp_path.glob("activations/*.safetensors")
    stamp = shard.stat().st_mtime_ns
    with pytest.raises(StoreMismatchError, match="holds another harvest"):
        study(small_model, noise, tmp_path, n_vectors=64, **options)
    again = study(small_model, noise[1:], tmp_path, n_vectors=64, keep_activations=True, **options)
    assert again.report.exists() and shard.stat().st_mtime_ns == stamp
    for name in ("report.html", "report.json"):
        (tmp_path / name).unlink()
    other = study(small_model, noise, tmp_path, n_vectors=64, overwrite=True, **options)
    assert "3 recordings" in text_of(other.report)


def test_recordings_without_tokens_leave_the_decoder_out(
    small_model: Any, noise: Any, tmp_path: Path
) -> None:
    silent = [each.__class__(each.id, each.audio) for each in noise[:1]]
    found = study(
        small_model, silent, tmp_path, n_latents=16, k=4, n_vectors=64, pages=False, progress=False
    )
    assert "The decoder did not run" in text_of(found.report)


def test_names_and_texts_are_shown_as_they_are(
    small_model: Any, noise: Any, tmp_path: Path
) -> None:
    hostile = "<script>alert('a')</script> {{ 7 * 7 }} {% if %} 100 %"
    named = [replace(noise[0], id=hostile, text=hostile)]
    found = study(
        small_model, named, tmp_path, n_latents=16, k=4, n_vectors=64, pages=False, progress=False
    )
    assert hostile in text_of(found.report)
    assert "<script" not in found.report.read_text(encoding="utf-8")
    assert found.to_dict()["recordings"][0]["reference"] == hostile


def test_one_recording_of_five_is_kept_and_one_of_three_where_they_are_few() -> None:
    some = list(range(20))
    assert split(some) == ([i for i in some if i % 5 != 4], [4, 9, 14, 19])
    assert split(some[:8]) == ([0, 1, 3, 4, 6, 7], [2, 5])
    train, kept = split(some[:2])
    assert kept is train and train == [0, 1]


REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "an unknown hook": ({"hook_name": "encoder.blocks.9.hook_mlp_out"}, HookNameError, "no hook"),
    "a hook of the decoder": (
        {"hook_name": "decoder.blocks.0.hook_resid_post"},
        HookNameError,
        "one hook of the encoder",
    ),
    "several hooks": (
        {"hook_name": "encoder.blocks.*.hook_resid_post"},
        HookNameError,
        "one hook of the encoder",
    ),
    "more active latents than there are": ({"n_latents": 8, "k": 9}, SAEConfigError, "k is 9"),
    "no vectors": ({"n_vectors": 0}, SAEConfigError, "n_vectors is 0"),
    "an autoencoder that is not there": ({"sae": "no/such"}, SAEFileError, "there is no"),
    "an autoencoder of another model": ({"sae": "digits"}, HookNameError, "no hook"),
    "no autoencoder": (
        {"sae": object(), "hook_name": "encoder.blocks.1.hook_resid_post"},
        SpliceError,
        "is no autoencoder: it needs encode",
    ),
    "one that does not say its hook": ({"sae": object()}, SpliceError, "does not say where"),
    "too many tokens": ({"max_new_tokens": 0}, InputError, "max_new_tokens is 0"),
}


@pytest.mark.parametrize(("options", "error", "says"), REFUSED.values(), ids=REFUSED)
def test_is_refused_before_anything_runs(
    small_model: Any,
    noise: Any,
    tmp_path: Path,
    options: dict[str, Any],
    error: type[Exception],
    says: str,
) -> None:
    with pytest.raises(error, match=says):
        study(small_model, noise, tmp_path / "out", progress=False, **options)
    assert not (tmp_path / "out").exists()


def test_a_hooked_model_is_refused(small_model: Any, noise: Any, tmp_path: Path) -> None:
    with (
        small_model.hooks([("encoder.hook_embed", lambda value, hook: None)]),
        pytest.raises(InputError, match=r"'encoder\.hook_embed' has hooks"),
    ):
        study(small_model, noise, tmp_path / "out", progress=False)


def test_a_file_in_the_folders_place_is_refused(
    small_model: Any, noise: Any, tmp_path: Path
) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ReportError, match="is a file"):
        study(small_model, noise, tmp_path / "out", progress=False)


def test_recordings_none_of_which_can_be_used(small_model: Any, tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"nothing")
    with pytest.raises(RecordingsError, match=r"none of the recordings can be used.*a\.wav"):
        study(small_model, [tmp_path / "a.wav"], tmp_path / "out", progress=False)


def test_two_studies_do_not_write_into_one_folder(digits_model: Any, tmp_path: Path) -> None:
    """The lock of a process that is killed is gone with it; see tests/store for that."""
    folder = tmp_path / "report"
    folder.mkdir()
    with (
        lock_folder(folder, "study"),
        pytest.raises(StoreBusyError, match="another study writes into"),
    ):
        study(digits_model, recordings()[:1], folder, n_vectors=100, progress=False)
    assert [path.name for path in folder.iterdir()] == [".lock"]


class TestInPlace:
    """Whether an autoencoder is called usable."""

    SAID: ClassVar[list[str]] = ["three one four", "ask not what your country can do for you"]

    def test_the_same_words_are_usable(self) -> None:
        found = in_place(self.SAID, ["Three, one, four.", self.SAID[1]])
        assert (found["unusable"], found["loops"], found["wer_to_model"]) == (False, 0, 0)

    def test_loops_are_named(self) -> None:
        loop = "country can do " * 40
        found = in_place(self.SAID, [self.SAID[0], loop])
        assert found["unusable"] and found["loops"] == 1
        assert found["loop"] == loop[:80] and found["repetition"] > 0.9
        assert in_place([loop, "a"], [loop, "a"])["loops"] == 0  # the model's own

    def test_other_words_are_unusable(self) -> None:
        found = in_place(self.SAID, ["nine", "thank you"])
        assert found["unusable"] and found["loops"] == 0 and found["wer_to_model"] > 0.5

    def test_the_report_says_so_before_latents(
        self, digits_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("hooked_whisper.study.report._picture", lambda *_: "data:,")
        torch.manual_seed(0)
        name = "encoder.blocks.3.hook_resid_post"
        sae = TopKSAE(TopKConfig(d_in=96, d_sae=64, k=1, hook_name=name))
        sae.W_dec.data.zero_()
        options: dict[str, Any] = {"sae": sae, "max_new_tokens": 12, "progress": False}
        found = study(digits_model, recordings()[:2], tmp_path / "s", **options)
        finding = found.sections[-1].findings[0]
        assert "In the model's place it is unusable" in finding
        page = (found.folder / "features.html").read_text(encoding="utf-8")
        assert "unusable in the model's place" in page.replace("&#39;", "'")


def test_a_training_that_is_done_leaves_no_checkpoint(digits_study: Study) -> None:
    assert not list(digits_study.folder.rglob("checkpoint*"))
