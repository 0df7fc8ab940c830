"""The Hugging Face hub, answered by a server on this machine that speaks its resolve protocol."""

import hashlib
import json
import os
import re
import socket
import subprocess
import sys

import pytest
import torch

from hooked_whisper.errors import ArchitectureError, DownloadError, SourceError
from hooked_whisper.weights import load_weights, save_weights
from hooked_whisper.weights.registry import load_from_hub
from hooked_whisper.weights.rename import expected_shapes, huggingface_name, sizes

from .ct2 import convert_to_ct2, small_vocabulary
from .mlx_files import write_mlx
from .peft_files import adapted, save_adapter

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PROGRAM = """
import sys
from hooked_whisper.weights import load_weights
print("loaded", load_weights("org/whisper", download_root=sys.argv[1]).cfg.model_name)
"""


def cut_into_shards(folder, model):
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="40KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1


class Hub:
    """One repository, from a folder, and what was asked of it."""

    def __init__(self, folder):
        self.folder = folder
        self.asked = []
        self.broken_off = None
        self.status = None

    def __call__(self, method, path):
        match = re.fullmatch(r"/org/whisper/resolve/(main|[0-9a-f]{40})/([\w.-]+)", path)
        if match is None:
            return 404, {"X-Error-Code": "RepoNotFound"}, b"no such repository"
        self.asked.append((method, match[2]))
        if self.status:
            return self.status, {}, b"no"
        file = self.folder / match[2]
        if not file.is_file():
            return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}, b"no such file"
        body = file.read_bytes()
        tag = hashlib.sha256(body).hexdigest()
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{tag}"', "Content-Length": str(len(body))}
        if self.broken_off == match[2] and method == "GET":
            body = body[: len(body) // 2]
        return 200, headers, body

    def fetched(self):
        return {name for method, name in self.asked if method == "GET"}


@pytest.fixture
def hub(hf_folder):
    return Hub(hf_folder)


@pytest.fixture
def load(hub, serve, tmp_path):
    def load(repo_id="org/whisper", endpoint=None):
        endpoint = endpoint or serve(hub)
        return load_from_hub(repo_id, cache_folder=tmp_path / "cache", endpoint=endpoint)

    return load


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    """huggingface_hub waits between its attempts; here nothing gets better by waiting."""
    monkeypatch.setattr("time.sleep", lambda _: None)


@pytest.mark.parametrize("sharded", [False, True], ids=["one-file", "sharded"])
def test_a_repository(hub, load, hf_model, into_module, sharded):
    if sharded:
        cut_into_shards(hub.folder, hf_model)
    (hub.folder / "pytorch_model.bin").write_bytes(b"never fetched")
    loaded = load()
    assert loaded.cfg.model_name == "org/whisper"
    assert loaded.alignment_heads.nonzero().tolist() == [[0, 1], [2, 0]]
    theirs = hf_model.state_dict()
    for name, value in into_module(loaded).items():
        assert torch.equal(value, theirs["model." + huggingface_name(name)]), name
    needed = {path.name for path in hub.folder.iterdir()} - {"pytorch_model.bin"}
    assert hub.fetched() == needed


def test_pickled_weights_where_there_are_no_others(hub, load, hf_model, into_module):
    (hub.folder / "model.safetensors").unlink()
    torch.save(hf_model.state_dict(), hub.folder / "pytorch_model.bin")
    embedding = into_module(load())["decoder.token_embedding.weight"]
    assert torch.equal(embedding, hf_model.model.decoder.embed_tokens.weight)


def test_a_repository_of_faster_whisper(hub, load, hf_model, tiny_cfg, into_module, tmp_path):
    tokens = small_vocabulary(tiny_cfg.d_vocab)
    hub.folder = convert_to_ct2(hf_model, tmp_path / "ct2", "float32", tokens)
    config = json.loads((hub.folder / "config.json").read_text())
    (hub.folder / "config.json").write_text(json.dumps({**config, "suppress_ids": []}))
    (hub.folder / "README.md").write_text("never fetched")
    loaded = load()
    assert loaded.cfg.model_name == "org/whisper"
    embedding = into_module(loaded)["decoder.token_embedding.weight"]
    assert torch.equal(embedding, hf_model.model.decoder.embed_tokens.weight)
    assert hub.fetched() == {"config.json", "model.bin", "vocabulary.json"}


def test_a_repository_of_mlx(hub, load, openai_model, into_module, tmp_path):
    hub.folder = tmp_path / "mlx"
    dims = vars(openai_model.dims)
    write_mlx(hub.folder, dims, openai_model.state_dict(), "weights.npz", dtype="float32")
    loaded = load()
    assert loaded.cfg.model_name == "org/whisper"
    assert hub.fetched() == {"config.json", "weights.npz"}


def test_a_repository_of_an_adapter(hub, serve, hf_model, tmp_path, monkeypatch):
    theirs = adapted(hf_model, target_modules=["fc1"])
    theirs.peft_config["default"].base_model_name_or_path = str(hub.folder)
    hub.folder = save_adapter(theirs, tmp_path / "adapter")
    url = serve(hub)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    loaded = load_weights("org/whisper", download_root=tmp_path / "cache")
    assert len(loaded.adapter.changes) == 5
    assert hub.fetched() == {"adapter_config.json", "adapter_model.safetensors"}


def test_a_repository_in_this_packages_format(hub, load, tiny_cfg, tmp_path):
    state = {name: torch.zeros(sizes(s, tiny_cfg)) for name, s in expected_shapes(tiny_cfg).items()}
    hub.folder = tmp_path / "own"
    save_weights(hub.folder, tiny_cfg, state)
    assert load().cfg == tiny_cfg


@pytest.mark.parametrize("sharded", [False, True], ids=["one-file", "sharded"])
def test_what_was_fetched_loads_without_a_network(hub, load, hf_model, closed_port, sharded):
    (hub.folder / "generation_config.json").unlink()
    if sharded:
        cut_into_shards(hub.folder, hf_model)
        (hub.folder / "generation_config.json").unlink()
    load()
    assert load(endpoint=closed_port).cfg.d_model == 24


@pytest.fixture
def closed_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{free.getsockname()[1]}"


def test_no_server(load, closed_port):
    with pytest.raises(DownloadError, match=r"'org/whisper' could .*cannot be reached.*'digits'"):
        load(endpoint=closed_port)


def test_no_such_repository(load):
    with pytest.raises(DownloadError, match=r"'org/whispr' .* no such repository, or it is"):
        load("org/whispr")


def test_a_server_that_fails(hub, load):
    hub.status = 500
    with pytest.raises(DownloadError, match=r"'org/whisper' could not be downloaded"):
        load()


def test_a_download_that_breaks_off(hub, load):
    hub.broken_off = "model.safetensors"
    with pytest.raises(DownloadError, match=r"'org/whisper' could not be downloaded"):
        load()
    hub.broken_off = None
    assert load().cfg.d_model == 24


def test_another_model_is_refused_before_its_weights_are_fetched(hub, load):
    (hub.folder / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ArchitectureError, match=r"config\.json of 'org/whisper' is of a 'bert'"):
        load()
    assert hub.fetched() == {"config.json"}


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("config.json", r"'org/whisper' on the hub has no config\.json"),
        (
            "model.safetensors",
            r"has none of model\.safetensors, model\.safetensors\.index\.json, pytorch_model\.bin",
        ),
    ],
)
def test_a_repository_without_a_file(hub, load, missing, message):
    (hub.folder / missing).unlink()
    with pytest.raises(SourceError, match=message):
        load()


@pytest.mark.slow
def test_HF_ENDPOINT_of_a_user(hub, serve, tmp_path):
    environment = {**os.environ, "HF_ENDPOINT": serve(hub)}
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "cache")],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    assert run.stdout == "loaded org/whisper\n"
