"""What begins is ended, whenever Ctrl-C comes: between the two, in the first or in the second.

Python raises it between two lines: here on each line of what attaches and takes away, one after
the other, and at random moments of a clock.
"""

import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hooked_whisper
from hooked_whisper.hooks.passes import PassInfo, pass_info
from hooked_whisper.interrupts import Temporarily, uninterrupted
from hooked_whisper.interventions import Interventions, Site, ZeroAblation
from hooked_whisper.sae import TopKConfig
from hooked_whisper.sae.architectures import make_sae

SITE = "encoder.blocks.0.hook_resid_post"
PACKAGE = Path(hooked_whisper.__file__).parent
ATTACHING = {
    str(PACKAGE / name)
    for name in (
        "interrupts.py",
        "hooks/attached.py",
        "hooks/passes.py",
        "hooks/points.py",
        "hooks/root.py",
        "hooks/splice_site.py",
        "hooks/splicing.py",
        "interventions/edits.py",
    )
}
N_RANDOM = 2000


def nothing(value: Tensor, hook: Any) -> None:
    pass


def left(model: Any, sae: nn.Module) -> list[Any]:
    """All that attaching leaves on a model, and what it lists."""
    points = [*model.hook_dict.values()]
    found: list[Any] = [[*model.hook_dict], [*model.mod_dict], len(model._attached)]
    found += [torch.is_grad_enabled(), vars(pass_info()) == vars(PassInfo())]
    for point in points:
        found.append((len(point.fwd_hooks), len(point.bwd_hooks), len(point.splices)))
        found.append((len(point.scopes), point.is_hooked))
    for module in [*model.modules(), *sae.modules()]:
        found.append((len(module._forward_hooks), len(module._backward_hooks)))
    return [*found, len(model._scopes), [p.requires_grad for p in model.parameters()]]


@pytest.fixture
def runs(
    fresh_model: Any, tiny_mel: Tensor, tiny_tokens: Tensor, without_shape_checks: None
) -> Iterator[Any]:
    """What attaches hooks or autoencoders for a while, by name, and how it looks before."""
    model = fresh_model
    sae = make_sae(TopKConfig(d_in=model.cfg.d_model, d_sae=32, k=4)).eval()
    pair = [(SITE, nothing)]

    def hooks() -> None:
        with model.hooks([("*resid*", nothing)], pair):
            pass

    def saes() -> None:
        with model.saes({SITE: sae}):
            pass

    def interventions() -> None:
        with Interventions(model, ZeroAblation(Site("encoder.blocks.*.hook_resid_post"))):
            pass

    def lasting() -> None:
        model.add_hook("*resid*", nothing)
        model.reset_hooks()

    def spliced() -> None:
        model.add_sae(sae, SITE)
        model.reset_saes()

    found: dict[str, Callable[[], Any]] = {
        "hooks": hooks,
        "saes": saes,
        "Interventions": interventions,
        "run_with_hooks": lambda: model.run_with_hooks(tiny_mel, fwd_hooks=pair),
        "run_with_cache": lambda: model.run_with_cache(tiny_mel, names_filter=SITE),
        "run_with_cache_with_saes": lambda: model.run_with_cache_with_saes(
            tiny_mel, saes={SITE: sae}, names_filter="*hook_sae*"
        ),
        "incl_bwd": lambda: model.run_with_cache(
            tiny_mel, tiny_tokens, "loss", incl_bwd=True, names_filter=SITE
        ),
        "forward": lambda: model(tiny_mel, tiny_tokens),
        "add_hook": lasting,
        "add_sae": spliced,
    }
    before = left(model, sae)
    yield model, found, lambda: left(model, sae) == before
    torch.set_grad_enabled(True)


class Tracer:
    """Raises KeyboardInterrupt at the `at`-th line that attaching code comes to."""

    def __init__(self, at: int) -> None:
        self.at, self.n, self.where = at, 0, ""

    def __call__(self, frame: Any, event: str, _: Any) -> Any:
        if frame.f_code.co_filename not in ATTACHING:
            return None
        if event in ("call", "line"):
            self.n += 1
            if self.n == self.at:
                self.where = f"{frame.f_code.co_name}:{frame.f_lineno} {event}"
                raise KeyboardInterrupt
        return self


STEPS = {
    "forward": 1,
    "hooks": 2,
    "saes": 9,
    "Interventions": 2,
    "run_with_hooks": 1,
    "incl_bwd": 17,
}
"""Every how manieth line is tried, and of these every third is: all take 50 s, and pass."""


@pytest.mark.parametrize(
    ("name", "step"),
    [
        *[(name, 3 * step) for name, step in STEPS.items()],
        *[pytest.param(name, step, marks=pytest.mark.slow) for name, step in STEPS.items()],
    ],
)
def test_ctrl_c_on_every_line(name: str, step: int, runs: Any) -> None:
    _, found, is_clean = runs
    run = found[name]
    run()
    at, wrong = 1 - step, []
    while True:
        at += step
        tracer, before = Tracer(at), sys.gettrace()
        try:
            sys.settrace(tracer)
            run()
        except KeyboardInterrupt:
            sys.settrace(before)
            if not is_clean():
                wrong.append(tracer.where)
                break
        else:
            sys.settrace(before)
            break
    assert not wrong
    assert at > 20
    run()


@pytest.mark.parametrize("name", ["add_hook", "add_sae"])
def test_a_lasting_one_is_whole_or_can_be_reset(name: str, runs: Any) -> None:
    model, found, is_clean = runs
    for at in range(1, 150, 3):
        tracer, before = Tracer(at), sys.gettrace()
        try:
            sys.settrace(tracer)
            found[name]()
        except KeyboardInterrupt:
            sys.settrace(before)
            model.reset_hooks()
            model.reset_saes()
        sys.settrace(before)
        assert is_clean(), tracer.where


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no such clock")
def test_2000_interruptions_leave_nothing(runs: Any) -> None:
    _, found, is_clean = runs
    rng, n_hit = random.Random(0), 0

    def ring(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, ring)
    try:
        names = ["hooks", "saes", "Interventions", "run_with_hooks"]
        while n_hit < N_RANDOM:
            run = found[names[n_hit % len(names)]]
            try:
                signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-6, 6e-4))
                run()
                signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                n_hit += 1
                assert is_clean(), n_hit
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no such clock")
@pytest.mark.parametrize("n", [180, pytest.param(N_RANDOM, marks=pytest.mark.slow)])
def test_from_the_first_to_the_last_moment_of_every_run(n: int, runs: Any) -> None:
    """Also inside of passes, forwards and backwards, and of what lasts until it is taken away."""
    model, found, is_clean = runs
    rng, n_hit, n_tried = random.Random(1), 0, 0
    lasts_s = {}
    for name, run in found.items():
        run()
        start_s = time.perf_counter()
        run()
        lasts_s[name] = time.perf_counter() - start_s

    def ring(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, ring)
    try:
        while n_hit < n:
            name = [*found][n_hit % len(found)]
            n_tried += 1
            assert n_tried < 50 * n, "the clock rings too late"
            try:
                signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-6, lasts_s[name]))
                found[name]()
                signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                n_hit += 1
                if name in ("add_hook", "add_sae"):
                    model.reset_hooks()
                    model.reset_saes()
                assert is_clean(), (n_hit, name)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    for run in found.values():
        run()
        assert is_clean()


class Counting:
    """Work that counts."""

    def __init__(self, log: list[str]) -> None:
        self.log = log

    def begin(self) -> None:
        self.log.append("begin")

    def end(self) -> None:
        self.log.append("end")


class TestTemporarily:
    def test_ends_once_whoever_calls_it(self) -> None:
        log: list[str] = []
        work = Temporarily("value", lambda: Counting(log))
        with work as value, work:
            assert value == "value" and log == ["begin"] * 2
        assert log == ["begin"] * 2 + ["end"] * 2
        with ExitStack() as stack:
            assert stack.enter_context(work) == "value"
        work.__enter__()
        work.__exit__(None, None, None)
        assert log == ["begin"] * 2 + ["end"] * 2 + ["begin", "end"] * 2

        @work
        def function() -> None:
            log.append("inside")

        function()
        assert log[-3:] == ["begin", "inside", "end"]

    def test_an_error_is_passed_on(self) -> None:
        log: list[str] = []
        with pytest.raises(ValueError, match="mine"), Temporarily(None, lambda: Counting(log)):
            raise ValueError("mine")
        assert log == ["begin", "end"]


@pytest.fixture
def _answers_ctrl_c() -> Iterator[None]:
    """As in the foreground: a shell has what it starts with `&` ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_answers_ctrl_c")
def test_ctrl_c_is_held_back() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), uninterrupted():
        signal.raise_signal(signal.SIGINT)
        done.append(1)
    assert done == [1]
    thread = threading.Thread(target=lambda: done.append(uninterrupted().__enter__()))
    thread.start()
    thread.join(60)
    assert not thread.is_alive()
    assert done == [1, None]


class TestThreads:
    @pytest.mark.parametrize("kind", ["hooks", "saes"])
    @torch.no_grad()
    def test_another_thread_is_told(
        self, kind: str, fresh_model: Any, tiny_mel: Tensor, plain_autoencoder: Any
    ) -> None:
        model, told = fresh_model, []

        def other() -> None:
            for run in (
                lambda: model(tiny_mel),
                lambda: model.run_with_cache(tiny_mel),
                lambda: model.saes({SITE: plain_autoencoder(24)}).__enter__(),
            ):
                try:
                    run()
                except hooked_whisper.errors.HookError as error:
                    told.append(str(error))

        sae = {SITE: plain_autoencoder(24)}
        with model.hooks([(SITE, nothing)]) if kind == "hooks" else model.saes(sae):
            here = model(tiny_mel)
            in_thread(other)
            assert torch.equal(model(tiny_mel), here)
        assert len(told) == 3 and all("copy.deepcopy(model)" in each for each in told)
        assert "'encoder.blocks.0.hook_resid_post'" in told[0]
        in_thread(lambda: told.append(str(model(tiny_mel).shape)))
        assert len(told) == 4

    @torch.no_grad()
    def test_lasting_ones_act_in_all(self, fresh_model: Any, tiny_mel: Tensor) -> None:
        import copy

        model, fired = fresh_model, []
        model.add_hook(SITE, lambda value, hook: fired.append(1))
        in_thread(lambda: model(tiny_mel))
        assert fired == [1]
        model.run_with_hooks(tiny_mel, fwd_hooks=[(SITE, nothing)], reset_hooks_end=False)
        in_thread(lambda: model(tiny_mel))
        assert fired == [1] * 3
        with model.hooks([(SITE, nothing)]):
            twin = copy.deepcopy(model)
            in_thread(lambda: twin(tiny_mel))
        assert fired == [1] * 4


def in_thread(run: Callable[[], Any]) -> None:
    """Run to the end in a thread of its own; its error is the caller's."""
    errors: list[BaseException] = []

    def guarded() -> None:
        try:
            run()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=guarded)
    thread.start()
    thread.join(60)
    assert not thread.is_alive()
    if errors:
        raise errors[0]
