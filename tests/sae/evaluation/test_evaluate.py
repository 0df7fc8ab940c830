"""Judging in one call, against runs with hooks written by hand."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from hooked_whisper.errors import HookNameError, InputError, SpliceError
from hooked_whisper.sae import evaluate_sae, evaluate_saes, judge_reconstruction
from hooked_whisper.sae.evaluation.report import evaluation_table
from hooked_whisper.speech.mel import Mel

ENCODER, DECODER = "encoder.blocks.1.hook_resid_post", "decoder.blocks.1.hook_resid_post"
ROWS = [[3, 17, 5, 40, 99], [3, 8, 2]]
QUIET: dict[str, Any] = {"tokens": ROWS, "progress": False}


@pytest.fixture(scope="module")
def _kept() -> dict[str, Any]:
    return {}


@pytest.fixture
def judged(_kept: Any, tiny_model: Any, short_mel: Mel, plain_sae: Any) -> dict[str, Any]:
    """An autoencoder in the encoder and one in the decoder, judged once for all tests."""
    if not _kept:
        saes = {ENCODER: plain_sae(24, 60), DECODER: plain_sae(24, 50, seed=1)}
        _kept.update(evaluate_saes(saes, tiny_model, short_mel, **QUIET))
    return dict(_kept)


def activation(model: Any, mel: Mel, name: str) -> list[Tensor]:
    """The activation of each recording, run alone with its own tokens."""
    found = []
    for i, row in enumerate(ROWS):
        _, cache = model.run_with_cache(mel[i], torch.tensor([row[:-1]]), names_filter=name)
        found.append(cache[name][0])
    return found


def by_hand(model: Any, mel: Mel, name: str, put: Any, speech: bool) -> tuple[float, float]:
    """Mean cross-entropy and divergence of all tokens, recording by recording."""
    ce, kl, n = 0.0, 0.0, 0
    for i, row in enumerate(ROWS):
        end = int(mel.n_positions[i]) if speech and name.startswith("encoder") else None

        def hook(value: Tensor, hook: Any, end: int | None = end) -> Tensor:
            value = value.clone()
            value[:, :end] = put(value[:, :end])
            return value

        tokens = torch.tensor([row[:-1]])
        clean = model(mel[i], tokens)[0].log_softmax(-1)
        logits = model.run_with_hooks(mel[i], tokens, fwd_hooks=[(name, hook)])[0].log_softmax(-1)
        for pos, target in enumerate(row[1:]):
            ce -= float(logits[pos, target])
            kl += float((clean[pos].exp() * (clean[pos] - logits[pos])).sum())
            n += 1
    return ce / n, kl / n


EXTENTS = {
    "encoder, speech": (ENCODER, "speech"),
    "encoder, all frames": (ENCODER, "all"),
    "decoder": (DECODER, "text"),
}


@pytest.mark.parametrize(("name", "extent"), EXTENTS.values(), ids=EXTENTS.keys())
@torch.no_grad()
def test_numbers_are_those_of_plain_loops(
    name: str,
    extent: str,
    tiny_model: Any,
    short_mel: Mel,
    plain_sae: Any,
    without_shape_checks: None,
) -> None:
    sae = plain_sae(24, 60)
    evaluation = evaluate_sae(sae, tiny_model, short_mel, name, **QUIET)
    found = evaluation.extents[extent]
    values = activation(tiny_model, short_mel, name)
    if extent == "speech":
        values = [v[:n] for v, n in zip(values, short_mel.n_positions.tolist(), strict=True)]
    x = torch.cat(values)
    expected = judge_reconstruction(sae, [x])
    assert found.reconstruction.n_vectors == len(x)
    for number in ("fvu", "explained_variance", "l0", "cosine"):
        assert getattr(found.reconstruction, number) == pytest.approx(
            getattr(expected, number), rel=1e-4
        )
    puts = {
        "spliced": lambda v: sae.decode(sae.encode(v)),
        "zero": torch.zeros_like,
        "mean": lambda v: x.mean(0).expand(v.shape),
        "clean": lambda v: v,
    }
    recovered = found.recovered
    ce, kl = {}, {}
    for kind, put in puts.items():
        ce[kind], kl[kind] = by_hand(tiny_model, short_mel, name, put, extent == "speech")
        assert getattr(recovered, f"ce_{kind}") == pytest.approx(ce[kind], rel=1e-4)
        if kind != "clean":
            assert getattr(recovered, f"kl_{kind}") == pytest.approx(kl[kind], rel=1e-3)
    share = (ce["zero"] - ce["spliced"]) / (ce["zero"] - ce["clean"])
    lost = ce["zero"] > ce["clean"]
    assert recovered.ce_recovered == pytest.approx(
        share if lost else math.nan, rel=1e-2, nan_ok=True
    )
    assert recovered.kl_recovered == pytest.approx(1 - kl["spliced"] / kl["zero"], rel=1e-3)
    assert recovered.kl_recovered_mean == pytest.approx(1 - kl["spliced"] / kl["mean"], rel=1e-3)


def test_extents_are_those_of_the_site_and_of_the_question(
    judged: dict[str, Any], tiny_model: Any, short_mel: Mel, plain_sae: Any
) -> None:
    assert list(judged[ENCODER].extents) == ["speech", "all"]
    assert list(judged[DECODER].extents) == ["text"]
    assert judged[DECODER].speech is judged[DECODER].extents["text"]
    one = evaluate_sae(plain_sae(24, 60), tiny_model, short_mel, ENCODER, all_frames=True, **QUIET)
    assert list(one.extents) == ["all"]
    with pytest.raises(InputError, match="was judged over all, not over speech"):
        _ = one.speech


def test_several_at_once_are_several_one_by_one(
    judged: dict[str, Any], tiny_model: Any, short_mel: Mel, plain_sae: Any
) -> None:
    sae = plain_sae(24, 50, seed=1)
    alone = evaluate_sae(sae, tiny_model, short_mel, DECODER, batch_size=1, **QUIET)
    numbers = evaluation_table([judged[DECODER], alone]).select_dtypes("number")
    assert len(numbers.columns) > 20
    for column in numbers:
        first, second = numbers[column]
        assert first == pytest.approx(second, rel=1e-4, nan_ok=True), column


def test_an_identity_recovers_everything(tiny_model: Any, short_mel: Mel) -> None:
    same = SimpleNamespace(encode=lambda x: x, decode=lambda x: x, d_sae=24)
    found = evaluate_sae(same, tiny_model, short_mel, ENCODER, **QUIET).speech
    assert found.reconstruction.fvu == 0
    assert found.recovered.kl_spliced == pytest.approx(0, abs=1e-9)
    assert found.recovered.kl_recovered == pytest.approx(1)
    assert found.recovered.ce_spliced == pytest.approx(found.recovered.ce_clean)


@pytest.mark.parametrize("speech_only", [False, True], ids=["all frames", "speech"])
def test_splicing_is_what_the_model_does_itself(
    speech_only: bool, judged: dict[str, Any], tiny_model: Any, short_mel: Mel, plain_sae: Any
) -> None:
    saes = {ENCODER: plain_sae(24, 60)}
    ce = []
    for i, row in enumerate(ROWS):
        tokens = torch.tensor([row])
        with torch.no_grad():
            loss = tiny_model.run_with_saes(
                short_mel[i],
                tokens,
                return_type="loss",
                loss_per_token=True,
                saes=saes,
                speech_only=speech_only,
            )
        ce += loss.flatten().tolist()
    found = judged[ENCODER].speech if speech_only else judged[ENCODER].all_frames
    assert found.recovered.ce_spliced == pytest.approx(sum(ce) / len(ce), rel=1e-4)


def test_a_transcoder_replaces_what_it_writes(
    tiny_model: Any, short_mel: Mel, plain_sae: Any
) -> None:
    read, written = "encoder.blocks.1.hook_resid_mid", "encoder.blocks.1.hook_mlp_out"
    sae = plain_sae(24, 30)
    found = evaluate_sae(
        sae, tiny_model, short_mel, read, hook_name_out=written, all_frames=True, **QUIET
    ).all_frames
    x, y = (torch.cat(activation(tiny_model, short_mel, name)) for name in (read, written))
    expected = judge_reconstruction(sae, [(x, y)])
    assert found.reconstruction.fvu == pytest.approx(expected.fvu, rel=1e-4)
    kept: dict[str, Tensor] = {}

    def keep(value: Tensor, hook: Any) -> None:
        kept["x"] = value.clone()

    def put(value: Tensor, hook: Any) -> Tensor:
        return sae.decode(sae.encode(kept["x"]))

    ce = 0.0
    for i, row in enumerate(ROWS):
        loss = tiny_model.run_with_hooks(
            short_mel[i],
            torch.tensor([row]),
            return_type="loss",
            loss_per_token=True,
            fwd_hooks=[(read, keep), (written, put)],
        )
        ce += float(loss.detach().sum()) / 6
    assert found.recovered.ce_spliced == pytest.approx(ce, rel=1e-4)


@pytest.mark.parametrize("d_in", [12, 24], ids=["each head", "all heads"])
def test_heads_are_judged_alone_or_together(
    d_in: int, tiny_model: Any, short_mel: Mel, plain_sae: Any
) -> None:
    name = "encoder.blocks.0.attn.hook_z"
    sae = plain_sae(d_in, 30)
    sae.cfg = SimpleNamespace(d_in=d_in, metadata=SimpleNamespace(hook_name=name))
    found = evaluate_sae(sae, tiny_model, short_mel, **QUIET)
    x = torch.cat(activation(tiny_model, short_mel, name)).reshape(-1, d_in)
    assert found.hook_name == name
    assert found.all_frames.reconstruction.n_vectors == len(x)
    assert found.all_frames.reconstruction.fvu == pytest.approx(
        judge_reconstruction(sae, [x]).fvu, rel=1e-4
    )
    assert found.speech.reconstruction.n_vectors == 28 * 24 // d_in


def test_results_are_written_as_json_and_as_a_table(judged: dict[str, Any], tmp_path: Path) -> None:
    judged[ENCODER].save(tmp_path / "found.json")
    values = json.loads((tmp_path / "found.json").read_text())
    speech = judged[ENCODER].speech
    assert values["speech"]["reconstruction"]["fvu"] == speech.reconstruction.fvu
    assert (
        values["all"]["recovered"]["kl_recovered"]
        == judged[ENCODER].all_frames.recovered.kl_recovered
    )
    assert sum(values["speech"]["reconstruction"]["log10_density_histogram"]["counts"]) <= 60
    assert values["speech"]["transcripts"] is None  # this vocabulary is not Whisper's
    table = evaluation_table(judged)
    assert table.frames.tolist() == ["speech", "all", "text"]
    assert table.fvu[0] == speech.reconstruction.fvu
    assert table.hook_name.tolist() == [ENCODER, ENCODER, DECODER]
    assert "FVU" in repr(judged[ENCODER])


class TestBadInput:
    """Everything is refused before a single pass, and the model is left as it was."""

    @pytest.fixture(autouse=True)
    def _no_run(self, tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        def run(*args: Any, **kwargs: Any) -> None:
            raise AssertionError("the model ran")

        monkeypatch.setattr(tiny_model.encoder, "forward", run)

    def judge(self, sae: Any, model: Any, mel: Any, name: Any = ENCODER, **options: Any) -> None:
        evaluate_sae(sae, model, mel, name, **{**QUIET, **options})

    def test_of_the_autoencoder(self, tiny_model: Any, short_mel: Mel, plain_sae: Any) -> None:
        with pytest.raises(SpliceError, match=r"d_model=24\].*mat1 and mat2"):
            self.judge(plain_sae(25, 40), tiny_model, short_mel)
        stated = plain_sae(24, 40)
        stated.cfg = {"d_in": 96}
        with pytest.raises(SpliceError, match=r"reads width 96; the site .* d_model=24\]"):
            self.judge(stated, tiny_model, short_mel)
        with pytest.raises(SpliceError, match=r"a reconstruction \(2, 3, 23\) of a value"):
            self.judge(plain_sae(24, 40, 23), tiny_model, short_mel)
        with pytest.raises(SpliceError, match="Linear is no autoencoder"):
            self.judge(torch.nn.Linear(24, 24), tiny_model, short_mel)
        with pytest.raises(SpliceError, match="does not say where it belongs"):
            self.judge(plain_sae(24, 40), tiny_model, short_mel, None)
        broken = plain_sae(24, 40)
        broken.W_dec[3, 5] = torch.nan
        with pytest.raises(SpliceError, match=f"reconstruction .* at '{ENCODER}' has .* place 5"):
            self.judge(broken, tiny_model, short_mel)

    def test_of_the_site(self, tiny_model: Any, short_mel: Mel, plain_sae: Any) -> None:
        sae = plain_sae(24, 40)
        with pytest.raises(HookNameError, match=r"encoder\.blocks\.7"):
            self.judge(sae, tiny_model, short_mel, "encoder.blocks.7.hook_resid_post")
        with pytest.raises(SpliceError, match=r"\[batch head query key\]"):
            self.judge(
                plain_sae(30, 40), tiny_model, short_mel, "encoder.blocks.0.attn.hook_pattern"
            )
        with pytest.raises(InputError, match="is 2 hooks"):
            self.judge(sae, tiny_model, short_mel, "encoder.*.hook_resid_post")
        with pytest.raises(SpliceError, match="both must be in"):
            self.judge(sae, tiny_model, short_mel, hook_name_out=DECODER)
        sae.cfg = {"hook_name": ENCODER, "hook_name_out": "encoder.blocks.1.hook_mlp_out"}
        with pytest.raises(SpliceError, match="say hook_name_out= too"):
            self.judge(sae, tiny_model, short_mel, "encoder.blocks.0.hook_resid_post")

    def test_of_the_recordings(self, tiny_model: Any, short_mel: Mel, plain_sae: Any) -> None:
        sae = plain_sae(24, 40)
        with pytest.raises(InputError, match="does not say where speech ends"):
            self.judge(sae, tiny_model, short_mel.values)
        with pytest.raises(InputError, match="1 rows of tokens and 2 recordings"):
            self.judge(sae, tiny_model, short_mel, tokens=ROWS[:1])
        with pytest.raises(InputError, match="fewer than two"):
            self.judge(sae, tiny_model, short_mel, tokens=[[1], [2, 3]])
        with pytest.raises(InputError, match="out of the vocabulary"):
            self.judge(sae, tiny_model, short_mel, tokens=[[1, 101], [2, 3]])
        with pytest.raises(InputError, match="both texts and tokens"):
            self.judge(sae, tiny_model, short_mel, texts=["a", "b"])
        with pytest.raises(InputError, match="is not Whisper's"):
            self.judge(sae, tiny_model, short_mel, tokens=None)
        with pytest.raises(InputError, match="batch_size is 0"):
            self.judge(sae, tiny_model, short_mel, batch_size=0)
        with pytest.raises(InputError, match="no recordings"):
            self.judge(sae, tiny_model, [])
        with pytest.raises(InputError, match="no autoencoders"):
            evaluate_saes({}, tiny_model, short_mel, **QUIET)


def test_output_that_turns_bad_on_the_way_is_said_and_no_hook_is_left(
    tiny_model: Any, short_mel: Mel, plain_sae: Any
) -> None:
    sae = plain_sae(24, 40)
    bad = SimpleNamespace(encode=sae.encode, d_sae=40)
    bad.decode = lambda f: sae.decode(f) / (0.0 if f.ndim == 2 else 1.0)
    with pytest.raises(SpliceError, match=f"reconstruction of the autoencoder at '{ENCODER}'"):
        evaluate_sae(bad, tiny_model, short_mel, ENCODER, **QUIET)
    assert not any(point.is_hooked for point in tiny_model.hook_dict.values())
