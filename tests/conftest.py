"""What every test gets: checked shapes, no internet, fixed seeds, small shared models.

jaxtyping's import hook stands first, so that every shape annotation of the
package is checked with beartype while the tests run.
"""

import contextlib
import ctypes
import functools
import gc
import inspect
import os
import socket
import sys
import typing
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from html.parser import HTMLParser
from types import FunctionType, SimpleNamespace
from typing import Any

os.environ.setdefault("MPLBACKEND", "Agg")  # figures are drawn without a screen
# openai-whisper aligns words with loops that numba takes 20 s to compile; as Python they take none.
os.environ.setdefault("NUMBA_DISABLE_JIT", "1")
# oneDNN and PyTorch keep what they compiled for 1,000 shapes: 300 MB in a worker that meets them.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "32")
os.environ.setdefault("LRU_CACHE_CAPACITY", "32")

import jaxtyping
from beartype import beartype

_shapes = jaxtyping.jaxtyped

CHECKED_CALLS = 10
"""Of each function in each test."""

_tests = [0]
"""How many tests have begun in this process."""


def _checked(part: Any) -> Any:
    """A function or dataclass whose annotations are checked in each call.

    The same checks as `jaxtyped`'s, whose wrapper makes two more functions of
    each at import, and binds the arguments of each call once more for its error
    messages: a second and a half an import, and a sixth of the tests' time. In each
    test the first calls of each function are checked: those of a loop are alike.
    """
    if isinstance(part, type):
        if hasattr(part, "__dataclass_fields__") and not hasattr(part.__init__, "_is_checked"):
            part.__init__ = _checked(part.__init__)
        return part
    if inspect.isgeneratorfunction(part):  # beartype alone would look when it is first asked
        return _shapes(part, typechecker=beartype)
    check, has_shapes, test, n_calls = None, False, 0, 0

    @functools.wraps(part)
    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal check, has_shapes, test, n_calls
        __tracebackhide__ = True
        if test != _tests[0]:
            test, n_calls = _tests[0], 0
        n_calls += 1
        if n_calls > CHECKED_CALLS or jaxtyping.config.jaxtyping_disable:
            return part(*args, **kwargs)
        if check is None:
            check = FunctionType(
                part.__code__, part.__globals__, part.__name__, part.__defaults__, part.__closure__
            )
            check.__kwdefaults__, check.__qualname__ = part.__kwdefaults__, part.__qualname__
            check.__annotations__ = {n: _resolved(h, part) for n, h in part.__annotations__.items()}
            has_shapes = "jaxtyping." in repr(check.__annotations__)
            check = beartype(check)
        if not has_shapes:
            return check(*args, **kwargs)
        with _shapes("context"):  # in which an axis has one length
            return check(*args, **kwargs)

    call._is_checked = True  # type: ignore[attr-defined]
    return call


def _resolved(hint: Any, of: Any) -> Any:
    """An annotation, which may be a string; Any for what only type checkers import."""
    try:
        holder = SimpleNamespace(__annotations__={"it": hint})
        return typing.get_type_hints(holder, of.__globals__, include_extras=True)["it"]
    except Exception:
        return Any


jaxtyping.jaxtyped = lambda *, typechecker: _checked
jaxtyping.install_import_hook("hooked_whisper", "beartype.beartype")

import pytest
import torch

from .processes import Child

if not torch.cuda.is_available():  # PyTorch looks for triton: 90 MB that only CUDA has a use for
    sys.modules.setdefault("triton", None)  # type: ignore[arg-type]

from torch import nn

from hooked_whisper.config import HookedWhisperConfig

SWITCHES = {
    "slow": "takes longer than a test should; turn on with --slow",
    "gpu": "needs a CUDA device; turn on with --gpu",
    "network": "needs the internet; turn on with --network",
}
"""Markers that are off by default, and the reason that their skip gives."""


FIRST = (
    "tests/contract/test_docs.py",
    "tests/examples/",
    "tests/contract/test_coming_from.py",
    "tests/weights/test_from_pretrained.py",
    "tests/weights/test_memory.py",
    "tests/patching/test_rollout.py",
    "tests/parity/",
)
"""Files that keep whole runs at full size: they run while a worker is still small, and long."""


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("hooked_whisper")
    for marker in SWITCHES:
        group.addoption(f"--{marker}", action="store_true", help=f"also run tests marked {marker}")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--gpu") and not torch.cuda.is_available():
        raise pytest.UsageError("--gpu: torch sees no CUDA device on this machine.")
    if hasattr(config.option, "loadscopereorder"):  # xdist's order of files; ours is below
        config.option.loadscopereorder = False
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", min(2, os.cpu_count() or 1))))
    if not config.getoption("--network"):
        _go_offline(config)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    in_file = Counter(_file(item) for item in items)

    def place(item: pytest.Item) -> tuple[int, int, str]:
        file = _file(item)
        early = [i for i, name in enumerate(FIRST) if file.startswith(name)]
        return min(early, default=len(FIRST)), -in_file[file], file

    items.sort(key=place)
    for item in items:
        for marker, reason in SWITCHES.items():
            if item.get_closest_marker(marker) and not config.getoption(f"--{marker}"):
                item.add_marker(pytest.mark.skip(reason=f"{marker}: {reason}"))


def _file(item: pytest.Item) -> str:
    return item.nodeid.partition("::")[0]


def _go_offline(config: pytest.Config) -> None:
    """Answer every connection that leaves this machine as if there were no network."""
    patch = pytest.MonkeyPatch()
    config.add_cleanup(patch.undo)
    real_connect, real_lookup = socket.socket.connect, socket.getaddrinfo

    def is_here(host: Any) -> bool:
        name = host.decode() if isinstance(host, bytes) else host
        return name in (None, "", "localhost", "::1") or str(name).startswith("127.")

    def connect(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and not is_here(address[0]):
            raise OSError(f"tests are offline, but something connects to {address[0]}")
        real_connect(self, address)

    def lookup(host: Any, *args: Any, **kwargs: Any) -> Any:
        if not is_here(host):
            raise socket.gaierror(f"tests are offline, but something looks up {host}")
        return real_lookup(host, *args, **kwargs)

    patch.setattr(socket.socket, "connect", connect)
    patch.setattr(socket, "getaddrinfo", lookup)


def pytest_collection_finish() -> None:
    """Have what imports left out of every later collection, which is then quick."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(
    item: pytest.Item, nextitem: pytest.Item | None
) -> Generator[None, Any, Any]:
    """Keep a worker small, behind the whole of a test: until then its fixtures are held."""
    _tests[0] += 1
    result = yield
    if nextitem is None or nextitem.path != item.path:
        gc.collect()
        _trim()
        gc.freeze()  # what outlives a file is not looked at behind every later one
        item.config.stash[_KEPT] = _resident_mb()
    else:
        item.config.stash[_KEPT] = _give_back(item.config.stash.get(_KEPT, 0.0))
    return result


_KEPT = pytest.StashKey[float]()
"""The resident memory, in MB, when some was last given back behind a test."""


def _give_back(kept_mb: float) -> float:
    """Once a worker has grown by 30 MB: return what is free to the system.

    Cycles are looked for only where that leaves 100 MB, as it takes a tenth of a second.

    Returns:
        What was resident when that was last done: `kept_mb` of the next call.
    """
    if _resident_mb() - kept_mb < 30:
        return kept_mb
    _trim()
    if _resident_mb() - kept_mb > 100:
        gc.collect()
        _trim()
    return _resident_mb()


def _trim() -> None:
    with contextlib.suppress(OSError, AttributeError):  # where the C library is not glibc
        ctypes.CDLL(None).malloc_trim(0)


@pytest.fixture(scope="session")
def trim_memory() -> Callable[[], None]:
    """`trim_memory()` between the steps of a test that takes much in each."""
    return _trim


def _resident_mb() -> float:
    """The memory of this process; 0 where there is no /proc."""
    try:
        with open("/proc/self/statm") as counts:
            return int(counts.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    except OSError:
        return 0.0


@pytest.fixture
def in_child() -> Iterator[Callable[[Callable[[], object]], Child]]:
    """`in_child(function)`: a fork of this process that runs it; ended with the test."""
    children: list[Child] = []

    def start(function: Callable[[], object]) -> Child:
        children.append(Child(function))
        return children[-1]

    yield start
    for child in children:
        child.end()


@pytest.fixture(autouse=True)
def _seed() -> None:
    """The same random numbers for a test, whichever tests ran before it."""
    torch.manual_seed(0)


@pytest.fixture
def without_shape_checks() -> Iterator[None]:
    """What users run: jaxtyping's checks would answer bad input before the package does.

    Also for loops over every hook name, which are twice as fast without.
    """
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def blocks_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """An encoder's block that has computed the same before gives that: see blocks.py."""
    from .blocks import run_blocks_once

    run_blocks_once(monkeypatch)


@pytest.fixture(scope="session")
def tiny_cfg() -> HookedWhisperConfig:
    """A Whisper of 0.6 s in which no two sizes that might be mixed up are equal."""
    return HookedWhisperConfig(
        n_mels=80,
        n_audio_ctx=30,
        n_audio_layers=2,
        n_audio_heads=2,
        n_text_ctx=20,
        n_text_layers=3,
        n_text_heads=3,
        d_model=24,
        d_vocab=101,
        model_name="tiny-random",
    )


@pytest.fixture(scope="session")
def _shared() -> dict[str, Any]:
    """Where the shared model lives until a test changes it."""
    return {}


@pytest.fixture
def tiny_model(_shared: dict[str, Any], tiny_cfg: HookedWhisperConfig) -> Iterator[Any]:
    """A small random HookedWhisper in eval mode, shared: a test must leave it as it was."""
    model = _shared.setdefault("model", None) or random_model(tiny_cfg)
    before = _shared.pop("state", None) or _state(model)
    _shared["model"] = None  # a changed model is not handed on
    yield model
    for parameter in model.parameters():
        parameter.grad = None
    after = _state(model)
    assert after == before, "this test changed the shared tiny_model: take fresh_model"
    _shared.update(model=model, state=after)


@pytest.fixture
def fresh_model(tiny_cfg: HookedWhisperConfig) -> Any:
    """The same small model as `tiny_model`, but of this test's own, to be changed at will."""
    return random_model(tiny_cfg)


@pytest.fixture(scope="session")
def reference_model(tiny_cfg: HookedWhisperConfig) -> Any:
    """openai-whisper's own model with the weights of `tiny_model`, in eval mode; shared."""
    return openai_twin(random_model(tiny_cfg))


@pytest.fixture(scope="session")
def make_model() -> Callable[..., Any]:
    """`random_model(cfg, seed=0)`, for a test that needs other sizes or a model of its own."""
    return random_model


@pytest.fixture(scope="session")
def make_reference() -> Callable[..., Any]:
    """`openai_twin(model)`: openai-whisper's own model with the weights of a HookedWhisper."""
    return openai_twin


class PlainAutoencoder(nn.Module):
    """An autoencoder as somebody might write it: two matrices, ReLU, nothing else."""

    def __init__(self, d_in: int, n_latents: int = 10, d_out: int | None = None, seed: int = 0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        d_out = d_out or d_in
        self.W_enc = nn.Parameter(torch.randn(d_in, n_latents, generator=generator) / d_in**0.5)
        self.W_dec = nn.Parameter(torch.randn(n_latents, d_out, generator=generator) / d_in**0.5)

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x @ self.W_enc + 0.1)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return latents @ self.W_dec + 0.05


@pytest.fixture(scope="session")
def plain_autoencoder() -> Callable[..., Any]:
    """`plain_autoencoder(d_in, n_latents=10, d_out=None, seed=0)`: a module of a user's own."""
    return PlainAutoencoder


@pytest.fixture(scope="session")
def tiny_mel(tiny_cfg: HookedWhisperConfig) -> torch.Tensor:
    """A random log-mel of two recordings for `tiny_model`; shared, so clone to change it."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, tiny_cfg.n_mels, tiny_cfg.n_frames, generator=generator).clamp(-1, 1)


@pytest.fixture(scope="session")
def tiny_tokens(tiny_cfg: HookedWhisperConfig) -> torch.Tensor:
    """Random tokens, 7 for each recording of `tiny_mel`; shared, so clone to change them."""
    generator = torch.Generator().manual_seed(2)
    return torch.randint(0, tiny_cfg.d_vocab, (2, 7), generator=generator)


@pytest.fixture(scope="session")
def digits_model() -> Any:
    """The shipped model; shared, so leave it as it was."""
    from hooked_whisper import HookedWhisper

    return HookedWhisper.from_pretrained("digits", device="cpu")


@pytest.fixture(scope="session")
def make_example() -> Callable[..., Any]:
    """`make_example(model, seed, n_rows=1)`: random sound and 7 random tokens."""
    from hooked_whisper import Mel
    from hooked_whisper.interventions import Example

    def make(model: Any, seed: int, n_rows: int = 1) -> Any:
        generator = torch.Generator().manual_seed(seed)
        shape = (n_rows, model.cfg.n_mels, model.cfg.n_frames)
        values = torch.randn(shape, generator=generator).clamp(-1, 1)
        tokens = torch.randint(0, model.cfg.d_vocab, (n_rows, 7), generator=generator)
        return Example(Mel(values, torch.full((n_rows,), model.cfg.n_frames)), tokens)

    return make


@pytest.fixture
def pair(tiny_model: Any, make_example: Callable[..., Any]) -> tuple[Any, Any]:
    """Two examples for `tiny_model`."""
    return make_example(tiny_model, 1), make_example(tiny_model, 2)


@pytest.fixture(scope="session")
def one_pass() -> Callable[..., torch.Tensor]:
    """`one_pass(model, mel, tokens, *edits)`: logits with the edits."""
    from hooked_whisper.interventions import Interventions

    def run(model: Any, mel: Any, tokens: torch.Tensor, *edits: Any) -> torch.Tensor:
        with torch.no_grad(), Interventions(model, *edits):
            return model(mel, tokens)

    return run


@pytest.fixture(scope="session")
def in_steps() -> Callable[..., torch.Tensor]:
    """`in_steps(model, mel, tokens, *edits)`: the same, 3 tokens first and then one at a time."""
    from hooked_whisper.interventions import Interventions
    from hooked_whisper.model.kv_cache import KVCache

    def run(model: Any, mel: Any, tokens: torch.Tensor, *edits: Any) -> torch.Tensor:
        kv_cache = KVCache()
        steps = [tokens[:, :3], *tokens[:, 3:].split(1, dim=1)]
        with torch.no_grad(), Interventions(model, *edits):
            encoded = model.encoder(mel)
            logits = [model.decoder(step, encoded, kv_cache=kv_cache) for step in steps]
        return torch.cat(logits, dim=1)

    return run


class Shown(HTMLParser):
    """What an object shows in a notebook, read as a browser would, and checked for its promises.

    Every tag is closed, nothing is fetched, and neither styles nor scripts stand beside it.
    """

    def __init__(self, html: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.rows: list[list[str]] = []
        self.found: list[tuple[str, dict[str, Any]]] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == [], "tags that are not closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "style", "link", "object", "embed"), tag
        values = dict(attrs)
        for name, value in values.items():
            assert not name.startswith("on"), name
            if name in ("src", "href"):
                assert (value or "").startswith("data:"), f"{tag} fetches {value}"
        self.found.append((tag, values))
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        if tag != "img":
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)
        if "tr" in self._open and self._open[-1] != "tr":
            self.rows[-1][-1] += data

    @property
    def text(self) -> str:
        """All that is read, tags left out."""
        return "".join(self.words)

    def all(self, tag: str) -> list[dict[str, Any]]:
        """The attributes of each tag of this kind."""
        return [attributes for each, attributes in self.found if each == tag]


@pytest.fixture(scope="session")
def shown() -> Callable[[Any], Shown]:
    """`shown(thing)`: what it shows in a notebook, read and checked."""
    return lambda thing: Shown(thing._repr_html_())


def random_model(cfg: HookedWhisperConfig, seed: int = 0) -> Any:
    """A HookedWhisper in which every parameter is random, biases and LayerNorms included.

    A fresh model's zeros and ones would hide a bias that is left out.
    """
    from hooked_whisper.model.whisper import HookedWhisper

    model = HookedWhisper(cfg).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_gain = ".ln" in name and name.endswith("weight")
            parameter.copy_(1 + 0.3 * noise if is_gain else 0.3 * noise)
    return model


def openai_twin(model: Any, share: bool = False) -> Any:
    """openai-whisper's own model with the weights of `model`, a copy of them or the same memory.

    The renaming is written out here, so that a slip in the package's own shows.
    """
    from whisper.model import Whisper

    twin = Whisper(model.cfg.dims).eval()
    weights = {_openai_name(name): value for name, value in model.state_dict().items()}
    missing, extra = twin.load_state_dict(weights, strict=False, assign=share)
    # openai-whisper's causal mask and alignment heads are no weights, and not saved by it.
    assert set(missing) | set(extra) <= {"decoder.mask", "alignment_heads"}, (missing, extra)
    return twin


def _openai_name(name: str) -> str:
    stack, _, rest = name.partition(".")
    rest = rest.replace("mlp.fc_in", "mlp.0").replace("mlp.fc_out", "mlp.2")
    rest = rest.replace("ln_final", "ln_post" if stack == "encoder" else "ln")
    rest = rest.replace(".ln1.", ".attn_ln.").replace(".ln3.", ".mlp_ln.")
    rest = rest.replace(".ln2.", ".mlp_ln." if stack == "encoder" else ".cross_attn_ln.")
    return f"{stack}.{rest}"


def _state(model: nn.Module) -> dict[str, Any]:
    """What a test could change: weights, mode, hooks and switches."""
    state: dict[str, Any] = {"cfg": getattr(model, "cfg", None)}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        # The sum sees an edit through `.data`, which leaves the version as it is.
        total = tensor.detach().to_dense().sum().item()
        state[name] = (id(tensor), tensor._version, total, tensor.requires_grad)
    for name, module in model.named_modules():
        hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
        state[f"module {name}"] = (module.training, [len(each) for each in hooks])
    return state
