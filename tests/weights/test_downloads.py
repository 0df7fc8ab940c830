"""OpenAI's releases, downloaded by openai-whisper's own code from a server on this machine."""

import hashlib
import io
import socket

import pytest
import torch
import whisper

from hooked_whisper.errors import DownloadError
from hooked_whisper.weights import load_weights
from hooked_whisper.weights.openai import download_release

# openai-whisper leaves the file open that it computes the hash of.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")


@pytest.fixture(scope="module")
def release_bytes():
    """A checkpoint with `tiny.en`'s layers and heads, small otherwise."""
    from whisper.model import ModelDimensions, Whisper

    dims = ModelDimensions(80, 30, 24, 6, 4, 101, 20, 24, 6, 4)
    file = io.BytesIO()
    torch.save({"dims": vars(dims), "model_state_dict": Whisper(dims).half().state_dict()}, file)
    return file.getvalue()


@pytest.fixture
def publish(serve, monkeypatch, release_bytes):
    """Makes `tiny.en` come from a server here; counts the downloads."""

    def start(status=200, body=None, headers=None, address=None, sha=None):
        served = []

        def answer(method, path):
            served.append(path)
            return status, headers or {}, release_bytes if body is None else body

        address = address or serve(answer)
        sha = sha or hashlib.sha256(release_bytes).hexdigest()
        monkeypatch.setitem(whisper._MODELS, "tiny.en", f"{address}/models/{sha}/tiny.en.pt")
        return served

    return start


def test_a_release_is_downloaded_once_and_checked(publish, tmp_path, capfd):
    served = publish()
    loaded = load_weights("tiny.en", download_root=tmp_path)
    assert "100%" in capfd.readouterr().err  # openai-whisper's progress bar
    assert loaded.cfg.model_name == "tiny.en"
    assert loaded.cfg.n_text_layers == 4
    load_weights("tiny.en", download_root=str(tmp_path))
    assert len(served) == 1
    assert (tmp_path / "tiny.en.pt").is_file()


def test_alignment_heads_of_a_release_come_along(publish, tmp_path):
    from whisper.model import ModelDimensions, Whisper

    publish()
    loaded = load_weights("tiny.en", download_root=tmp_path)
    theirs = Whisper(ModelDimensions(80, 30, 24, 6, 4, 101, 20, 24, 6, 4))
    theirs.set_alignment_heads(whisper._ALIGNMENT_HEADS["tiny.en"])
    assert torch.equal(loaded.alignment_heads, theirs.alignment_heads.to_dense())


@pytest.mark.parametrize("xdg", [True, False], ids=["XDG_CACHE_HOME", "home"])
def test_the_cache_folder_is_openai_whispers(publish, tmp_path, monkeypatch, xdg):
    publish()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    if xdg:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    path = download_release("tiny.en")
    folder = tmp_path / "xdg" if xdg else tmp_path / "home" / ".cache"
    assert path == folder / "whisper" / "tiny.en.pt"
    assert path.is_file()
    whisper._download(whisper._MODELS["tiny.en"], str(path.parent), False)


def test_an_altered_file_is_refused_and_removed(publish, tmp_path, release_bytes):
    publish(body=release_bytes[:-1] + b"!")
    message = r"'tiny\.en' could not be downloaded from http.*: .* its SHA-256 hash is wrong\. Try"
    with pytest.raises(DownloadError, match=message):
        load_weights("tiny.en", download_root=tmp_path)
    assert list(tmp_path.iterdir()) == []
    publish()
    load_weights("tiny.en", download_root=tmp_path)


def test_a_download_that_breaks_off_leaves_nothing(publish, tmp_path, release_bytes):
    whole = {"Content-Length": str(len(release_bytes))}
    publish(body=release_bytes[:1000], headers=whole)
    with pytest.raises(DownloadError, match="broken off or altered"):
        load_weights("tiny.en", download_root=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_broken_file_in_the_cache_is_downloaded_again(publish, tmp_path):
    served = publish()
    (tmp_path / "tiny.en.pt").write_bytes(b"half a file")
    with pytest.warns(UserWarning, match="checksum does not match; re-downloading"):
        load_weights("tiny.en", download_root=tmp_path)
    assert len(served) == 1


@pytest.mark.parametrize(
    ("status", "message"),
    [(404, "the server answered 404 Not Found"), (503, "the server answered 503 Service Un")],
)
def test_a_server_that_refuses(publish, tmp_path, status, message):
    publish(status=status, body=b"no")
    with pytest.raises(DownloadError, match=message):
        load_weights("tiny.en", download_root=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_tells_no_length(tmp_path, monkeypatch):
    class Answer(io.BytesIO):
        def info(self):
            return {}

    monkeypatch.setattr("urllib.request.urlopen", lambda url: Answer(b"text"))
    with pytest.raises(DownloadError, match=r"'tiny' could not be downloaded from https"):
        load_weights("tiny", download_root=tmp_path)


def test_no_server(publish, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        publish(address=f"http://127.0.0.1:{free.getsockname()[1]}")
        with pytest.raises(DownloadError, match=r"refused.* copy the file to .*tiny\.en\.pt"):
            load_weights("tiny.en", download_root=tmp_path)


def test_no_network(tmp_path):
    with pytest.raises(DownloadError, match=r"(?s)'base' could .*offline.*or use 'digits', which"):
        load_weights("base", download_root=tmp_path)


@pytest.mark.parametrize("taken", ["root", "file"])
def test_a_cache_folder_that_cannot_be_used(publish, tmp_path, taken):
    publish()
    root = tmp_path / "cache"
    if taken == "root":
        root.write_text("not a folder")
    else:
        (root / "tiny.en.pt").mkdir(parents=True)
    with pytest.raises(DownloadError, match=r"File exists|not a regular file"):
        load_weights("tiny.en", download_root=root)
