"""The other package's side of docs/coming_from runs, on small stand-ins for what is downloaded.

A block there is fenced with the name of its package. `make test-tl3` has sae-lens, nnsight and
the older transformer-lens; the others run everywhere.
"""

import linecache
import os
import re
import shutil
from collections.abc import Callable
from functools import partial
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

PAGES = Path(__file__).parents[2] / "docs" / "coming_from"
WORDS = "three one four eight five two".split()
TL_MAJOR = int(metadata.version("transformer-lens").split(".")[0])

# What other packages warn of while they load and run is not this package's to mend.
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("blocks_run_once")]


def needs(package: str) -> pytest.MarkDecorator:
    """Skip where a package is missing, but not in `make test-tl3`, which is to have it."""
    missing = find_spec(package.replace("-", "_")) is None and "EXPECT_SAE_LENS" not in os.environ
    return pytest.mark.skipif(missing, reason=f"needs {package}, which `make test-tl3` installs")


def run_side(page: str, kind: str, edit: Callable[[str], str] = str, **names: Any) -> dict:
    """Run a page's blocks of one kind in one session that starts with some names."""
    path = PAGES / page
    text = path.read_text()
    blocks = re.finditer(rf"^```{kind}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    session: dict[str, Any] = {"__name__": "__main__", **names}
    n_run = 0
    for block in blocks:
        code = edit("\n" * text.count("\n", 0, block.start(1)) + block[1])
        name = f"{path}:{kind}:{block.start()}"
        # nnsight reads the lines of the block that it traces.
        linecache.cache[name] = (len(code), None, code.splitlines(keepends=True), name)
        exec(compile(code, name, "exec"), session)
        n_run += 1
    assert n_run >= 5
    return session


def test_every_block_is_of_a_package_that_is_run() -> None:
    kinds = {
        kind
        for page in PAGES.glob("*.md")
        for kind in re.findall(r"^```(python.*)$", page.read_text(), re.MULTILINE)
    }
    packages = ("openai-whisper", "transformer-lens", "sae-lens", "nnsight", "pyvene")
    assert kinds == {"python", *(f"python {package}" for package in packages)}


def test_openai_whisper(
    make_reference: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import whisper

    from hooked_whisper import HookedWhisper, load_audio
    from hooked_whisper.digits import recordings

    model = HookedWhisper.from_pretrained("digits")
    twin = make_reference(model)
    shutil.copy(recordings()[0].path, tmp_path / "speech.flac")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(whisper, "load_model", lambda name: twin)
    for module in (whisper, whisper.audio):  # which need the program ffmpeg
        monkeypatch.setattr(module, "load_audio", lambda path: load_audio(path).numpy())
    theirs = run_side("openai_whisper.md", "python openai-whisper")
    assert theirs["result"]["text"] == " three one four"
    tokens = model.to_tokens(" three one four")
    assert theirs["tokens"].tolist() == tokens.tolist()
    with torch.no_grad():
        logits, cache = model.run_with_cache(
            model.to_mel("speech.flac"),
            tokens,
            names_filter=[
                "encoder.ln_final.hook_normalized",
                "encoder.blocks.2.hook_resid_post",
                "decoder.blocks.2.cross_attn.hook_pattern",
            ],
        )
    ours = {
        "logits": logits,
        "features": cache["encoder.ln_final.hook_normalized"],
        "pattern": cache["decoder", 2, "pattern", "cross_attn"],
    }
    for name, value in ours.items():
        torch.testing.assert_close(theirs[name], value, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(
        theirs["kept"]["block 2"], cache["encoder", 2, "resid_post"], atol=1e-4, rtol=1e-4
    )


def named_modules(page: str) -> list[str]:
    """The other package's modules and weights in a page's table of names, of layer 0."""
    _, _, table = (PAGES / page).read_text().partition("## Names")
    rows = re.findall(r"^\| (.*?) \|", table.partition("## Different")[0], re.MULTILINE)
    names = [name for row in rows for name in re.findall(r"`([\w.\[\]]+)[^`]*`", row)]
    paths = [re.sub(r"\.(output|input)(\[\d\])?$", "", name) for name in names]
    return [re.sub(r"\[(\w)\]", r".\1", path.replace("[l]", "[0]")) for path in paths]


@pytest.mark.parametrize("page", ["nnsight.md", "openai_whisper.md"])
def test_modules_in_the_table_of_names_are_there(page: str, reference_model: Any) -> None:
    model = small_whisper() if page == "nnsight.md" else reference_model
    known = {f".model.{name}" for name, _ in [*model.named_modules(), *model.named_parameters()]}
    elsewhere = {"model.dims", "whisper.timing", "word_timestamps"}
    named = set(named_modules(page)) - elsewhere
    assert len(named) >= 8
    for name in named:
        assert any(path.endswith("." + name.removeprefix(".")) for path in known), name


def small_whisper(name: str = "", attn_implementation: str = "eager") -> Any:
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    sizes = {
        f"{stack}_{what}": size
        for stack in ("encoder", "decoder")
        for what, size in {"layers": 3, "attention_heads": 2, "ffn_dim": 32}.items()
    }
    cfg = WhisperConfig(
        **sizes, d_model=16, num_mel_bins=8, max_source_positions=120, vocab_size=60,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=3, init_std=0.5,
        attn_implementation=attn_implementation,
    )  # fmt: skip
    return WhisperForConditionalGeneration(cfg)


@pytest.fixture
def tokenizer(tmp_path: Path) -> Any:
    """Every digit's word is one token; from a folder, which transformer-lens reads again."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(["<|endoftext|>", *WORDS])}
    model = Tokenizer(models.WordLevel(vocabulary, unk_token="<|endoftext|>"))
    model.pre_tokenizer = pre_tokenizers.Whitespace()
    special = dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), "<|endoftext|>")
    PreTrainedTokenizerFast(tokenizer_object=model, **special).save_pretrained(tmp_path)
    return AutoTokenizer.from_pretrained(tmp_path)


def small_gpt2() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    sizes = {"n_layer": 3, "n_head": 4, "n_embd": 16, "vocab_size": 7, "n_positions": 16}
    return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)).eval()


def check_transformer_lens(session: dict[str, Any]) -> None:
    """What the blocks leave behind, and what the page says is different."""
    model, tokens = session["model"], session["tokens"]

    def double(value: torch.Tensor, hook: Any) -> torch.Tensor:
        return torch.cat([value, value], dim=1)

    nothing = [(lambda name: False, double)]
    model.run_with_hooks(tokens, fwd_hooks=nothing)  # nothing is said
    with pytest.raises((RuntimeError, ValueError, IndexError), match=r"size|shape"):
        model.run_with_hooks(tokens, fwd_hooks=[("blocks.1.attn.hook_z", double)])
    model.run_with_hooks(tokens, fwd_hooks=[("blocks.2.hook_resid_post", double)])  # it flows on
    with pytest.raises((KeyError, ValueError, AttributeError), match=r"blocks.1.attn.hook_zz"):
        model.run_with_hooks(tokens, fwd_hooks=[("blocks.1.attn.hook_zz", double)])
    cache = session["cache"]
    torch.testing.assert_close(cache["resid_post", 2], cache["blocks.2.hook_resid_post"])
    torch.testing.assert_close(cache["pattern", 2], cache["blocks.2.attn.hook_pattern"])
    assert session["stack"].shape[0] == len(session["labels"])
    assert session["table"].shape == (3, session["tokens"].shape[1])
    assert session["table"].std() > 0


@pytest.mark.skipif(TL_MAJOR < 4, reason="the page's left side is of transformer-lens 4")
def test_transformer_lens(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers
    from transformer_lens.model_bridge import TransformerBridge

    gpt2 = small_gpt2()
    monkeypatch.setattr(
        transformers.AutoConfig, "from_pretrained", lambda *args, **kwargs: gpt2.config
    )
    boot = partial(TransformerBridge.boot_transformers, hf_model=gpt2, tokenizer=tokenizer)
    monkeypatch.setattr(TransformerBridge, "boot_transformers", boot)
    check_transformer_lens(run_side("transformer_lens.md", "python transformer-lens"))


@pytest.mark.skipif(TL_MAJOR > 3, reason="needs transformer-lens 3, which `make test-tl3` installs")
def test_transformer_lens_3(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    sizes = {"n_layers": 3, "d_model": 16, "n_ctx": 16, "d_head": 4, "d_vocab": 7}
    cfg = HookedTransformerConfig(**sizes, act_fn="gelu", seed=0)
    small = HookedTransformer(cfg, tokenizer=tokenizer)
    monkeypatch.setattr(HookedTransformer, "from_pretrained", lambda name: small)

    def of_three(code: str) -> str:
        """As the page says: another second line, and the rest is the same."""
        code = code.replace(".model_bridge import TransformerBridge", " import HookedTransformer")
        code = code.replace(
            'TransformerBridge.boot_transformers("gpt2")\nmodel.enable_compatibility_mode()',
            'HookedTransformer.from_pretrained("gpt2")\n',
        )
        assert "Bridge" not in code
        return code

    session = run_side("transformer_lens.md", "python transformer-lens", of_three)
    check_transformer_lens(session)


@needs("nnsight")
def test_nnsight(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import WhisperForConditionalGeneration

    monkeypatch.setattr(WhisperForConditionalGeneration, "from_pretrained", small_whisper)
    mel, other_mel = torch.randn(2, 1, 8, 240)
    tokens = torch.tensor([[3, 7, 20, 11]])
    names = {"mel": mel, "other_mel": other_mel, "tokens": tokens}
    session = run_side("nnsight.md", "python nnsight", **names)
    whisper = session["whisper"]
    output = whisper(input_features=mel, decoder_input_ids=tokens, output_hidden_states=True)
    torch.testing.assert_close(session["stream"].shape, output.encoder_hidden_states[2].shape)
    assert (session["logits"] - output.logits).abs().max() > 0.01  # of the last block with an edit
    assert session["gradient"].shape == session["stream"].shape
    assert session["gradient"].abs().max() > 0


@needs("pyvene")
def test_pyvene(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import WhisperForConditionalGeneration

    monkeypatch.setattr(WhisperForConditionalGeneration, "from_pretrained", small_whisper)
    mel, other_mel = torch.randn(2, 1, 8, 240)
    names = {"mel": mel, "other_mel": other_mel, "tokens": torch.tensor([[3, 7, 20, 11]])}
    session = run_side("pyvene.md", "python pyvene", **names)
    whisper, inputs, patched = session["whisper"], session["inputs"], {}
    layer = whisper.model.encoder.layers[2]

    def patch(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        source = patched.setdefault("source", output.clone())
        return torch.cat([output[:, :60], source[:, 60:105], output[:, 105:]], dim=1)

    layer.register_forward_hook(patch)
    whisper(**session["other_inputs"])  # keeps its own
    torch.testing.assert_close(session["patched"], whisper(**inputs).logits)
    torch.testing.assert_close(session["stream"].shape, torch.Size([1, 50, 16]))
    assert (session["logits"] - session["patched"]).abs().max() > 0.01


@needs("sae-lens")
def test_sae_lens(tokenizer: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import sae_lens
    from datasets import Dataset
    from transformer_lens import HookedTransformerConfig

    sizes = {"n_layers": 9, "d_model": 768, "n_ctx": 32, "n_heads": 1, "d_head": 8, "d_mlp": 8}
    cfg = HookedTransformerConfig(**sizes, d_vocab=7, act_fn="gelu", seed=0)
    small = sae_lens.HookedSAETransformer(cfg)
    small.set_tokenizer(tokenizer)
    monkeypatch.setattr(sae_lens.HookedSAETransformer, "from_pretrained", lambda name: small)

    def ready_made(release: str, sae_id: str) -> Any:
        sizes = sae_lens.StandardSAEConfig(d_in=768, d_sae=24)
        sizes.metadata.hook_name = sae_id
        return sae_lens.StandardSAE(sizes)

    monkeypatch.setattr(sae_lens.SAE, "from_pretrained", ready_made)
    texts = Dataset.from_dict({"text": [" ".join(WORDS)] * 400})
    runner = partial(
        sae_lens.LanguageModelSAETrainingRunner, override_dataset=texts, override_model=small
    )
    monkeypatch.setattr(sae_lens, "LanguageModelSAETrainingRunner", runner)
    monkeypatch.chdir(tmp_path)
    session = run_side("sae_lens.md", "python sae-lens")
    name = "blocks.8.hook_resid_pre.hook_sae_acts_post"
    assert session["cache"][name].shape[-1] == 24
    assert session["logits"].shape[-1] == 7
    assert session["sae"].cfg.d_sae == 6144  # the one that was trained
