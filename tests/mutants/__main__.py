"""`make mutants`: puts faults into copies of the package, one at a time, and runs tests on each.

python -m tests.mutants                  # all of them
python -m tests.mutants 'splice-*'       # some, by name
python -m tests.mutants --list           # what there is

What takes long to import is imported once, here, and the runs of pytest are forked off.
"""

import argparse
import importlib.util
import itertools
import os
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path

from .catalogue import MUTANTS
from .mutant import ROOT, Mutant, write

_LONGEST_S = 600
_TAKES_LONG = (
    *("pytest", "jaxtyping", "beartype.claw", "torch", "transformer_lens", "whisper.timing"),
    *("transformers.models.whisper", "pandas", "matplotlib.figure", "jiwer", "soundfile", "soxr"),
    *("sklearn.linear_model", "sklearn.pipeline"),
)
_BROKEN = 99
"""The exit code of a run that did not come to pytest's."""
_NO_KILL = re.compile(r"^E +(NameError|ImportError|ModuleNotFoundError|SyntaxError)\b.*", re.M)
"""What a slip in the mutant itself raises."""


@dataclass(frozen=True)
class Job:
    """Tests to run, with a mutant or without one."""

    tests: tuple[str, ...]
    mutant: Mutant | None = None


@dataclass(frozen=True)
class Done:
    """How a job ended.

    Args:
        job: The job.
        code: pytest's exit code; negative for the signal that ended it.
        printed: What it printed.
        seconds: How long it took.
    """

    job: Job
    code: int
    printed: str
    seconds: float

    @property
    def failed(self) -> list[str]:
        """The tests that failed, in their order."""
        return re.findall(r"^(?:FAILED|ERROR) (\S+::.*?)(?: - .*)?$", self.printed, re.M)


class Bench:
    """A copy of the repository that mutants are put into."""

    def __init__(self, folder: Path) -> None:
        self.root = Path(shutil.copytree(ROOT, folder, ignore=_left_out)).resolve()
        self._job: Job | None = None
        self._pid = 0

    def start(self, job: Job) -> int:
        """Put the job's mutant in and run its tests in a process, whose number is returned."""
        self._job, self._start = job, time.monotonic()
        if job.mutant is not None:
            self._path = self.root / "hooked_whisper" / job.mutant.file
            self._text = self._path.read_text()
            write(self._path, job.mutant.changed(self._text))
        self._pid = os.fork()
        if not self._pid:
            code = _BROKEN
            try:
                code = self._run(job)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        return self._pid

    def end(self, status: int) -> Done:
        """What came of the job, after its process has ended; the mutant is taken out."""
        assert self._job is not None
        job, self._job = self._job, None
        if job.mutant is not None:
            write(self._path, self._text)
        printed = (self.root / "printed").read_text(errors="replace")
        seconds = time.monotonic() - self._start
        return Done(job, os.waitstatus_to_exitcode(status), printed, seconds)

    def stop(self) -> None:
        """End what runs, and what it has started."""
        if self._job is not None:
            os.killpg(self._pid, signal.SIGKILL)

    def _run(self, job: Job) -> int:
        """The tests' exit code, in the process that was forked off for them."""
        import pytest

        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.alarm(_LONGEST_S)
        os.chdir(self.root)
        output = os.open("printed", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(output, stream)
        for name in [name for name in sys.modules if name.split(".")[0] == "tests"]:
            del sys.modules[name]
        sys.path[:] = [str(self.root), *(each for each in sys.path if Path(each).resolve() != ROOT)]
        os.environ["PYTHONPATH"] = str(self.root)  # for what tests start
        importlib.invalidate_caches()
        spec = importlib.util.find_spec("hooked_whisper")
        if spec is None or not Path(str(spec.origin)).is_relative_to(self.root):
            print(f"hooked_whisper is that of {spec and spec.origin}, not of {self.root}")
            return _BROKEN
        options = ["-q", "-p", "no:cacheprovider", "--tb=short"]
        options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # of what is imported here
        options += [] if job.mutant is None else ["-x"]
        return int(pytest.main([*options, *(f"tests/{test}" for test in job.tests)]))


def _left_out(folder: str, names: list[str]) -> set[str]:
    """What a copy of the repository does without: what was made in it, and sockets."""
    made = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "out", "*.egg-info")
    paths = {name: Path(folder, name) for name in names}
    return made(folder, names) | {
        name for name, path in paths.items() if not (path.is_file() or path.is_dir())
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("names", nargs="*", default=["*"], help="names, or patterns of them")
    parser.add_argument("--list", action="store_true", help="show what there is and run nothing")
    parser.add_argument("--workers", type=int, default=2, help="how many at a time (2)")
    args = parser.parse_args()
    unknown = [each for each in args.names if not any(fnmatch(m.name, each) for m in MUTANTS)]
    if unknown:
        parser.error(f"no mutant is called {', '.join(unknown)}; --list shows them")
    chosen = [m for m in MUTANTS if any(fnmatch(m.name, each) for each in args.names)]
    if args.list:
        print("\n".join(f"{m.name:32} {m.file:42} {m.breaks}" for m in chosen))
        return 0
    start = time.monotonic()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: nothing is left behind
    _import_what_takes_long()
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        benches = [Bench(Path(folder, str(i))) for i in range(min(args.workers, len(chosen)))]
        outcomes: list[Outcome] = []
        try:
            for done in _each(benches, [Job(each.tests, each) for each in chosen]):
                outcomes.append(_judge(done))
                _show(outcomes[-1], f"[{len(outcomes)}/{len(chosen)}]")
            outcomes = _without_false_kills(outcomes, benches)
        except KeyboardInterrupt:
            print("\ninterrupted", flush=True)
        finally:
            for bench in benches:
                bench.stop()
    return _summary(outcomes, len(chosen), time.monotonic() - start)


def _import_what_takes_long() -> None:
    """As the tests would import it, but for hooked_whisper, which is that of a copy."""
    os.environ |= {"OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg", "NUMBA_DISABLE_JIT": "1"}
    for name in _TAKES_LONG:
        importlib.import_module(name)


def _each(benches: Sequence[Bench], jobs: Sequence[Job]) -> Iterator[Done]:
    """The jobs as they end, as many at a time as there are benches."""
    todo, free = list(jobs), list(benches)
    running: dict[int, Bench] = {}
    while todo or running:
        while todo and free:
            bench = free.pop()
            running[bench.start(todo.pop(0))] = bench
        pid, status = os.wait()
        bench = running.pop(pid)
        free.append(bench)
        yield bench.end(status)


@dataclass(frozen=True)
class Outcome:
    """What a run says of a mutant: killed, survived or broken, and by which test or why."""

    mutant: Mutant
    verdict: str
    why: str
    seconds: float

    @property
    def is_wrong(self) -> bool:
        """Whether somebody has to do something about it."""
        return self.verdict != ("survived" if self.mutant.known else "killed")


def _judge(done: Done) -> Outcome:
    mutant, failed = done.job.mutant, done.failed
    assert mutant is not None
    if done.code == -signal.SIGALRM:
        verdict, why = "killed", f"no end after {_LONGEST_S} s"
    elif done.code == 0 and re.search(r"\b\d+ passed", done.printed):
        verdict, why = "survived", ", ".join(mutant.tests)
    elif done.code != 1 or not failed:
        verdict, why = "broken", f"pytest ended with {done.code}: {done.printed.strip()[-1000:]}"
    elif slip := _NO_KILL.search(done.printed):
        verdict, why = "broken", f"{failed[0]}: {slip.group()}"
    else:
        verdict, why = "killed", failed[0]
    return Outcome(mutant, verdict, why, done.seconds)


def _without_false_kills(outcomes: Sequence[Outcome], benches: Sequence[Bench]) -> list[Outcome]:
    """The outcomes once the tests that killed have passed on the package as it is."""
    killers = {each.why for each in outcomes if each.verdict == "killed"}
    functions = sorted({each.split("[")[0].removeprefix("tests/") for each in killers})
    by_file = itertools.groupby(functions, lambda each: each.split("::")[0])
    jobs = [Job(tuple(each)) for file, each in by_file if file.endswith(".py")]
    print("The tests that killed, without any mutant:", flush=True)
    failing: set[str] = set()
    for number, done in enumerate(_each(benches, jobs), 1):
        last = (done.printed.strip() or "nothing was printed").splitlines()[-1]
        print(f"[{number}/{len(jobs)}]".ljust(10) + f"{done.job.tests[0]}: {last}", flush=True)
        failing |= set(done.failed)
    return [
        replace(each, verdict="broken", why=f"{each.why} fails without it, too")
        if each.why in failing
        else each
        for each in outcomes
    ]


def _show(outcome: Outcome, place: str = "") -> None:
    verdict = outcome.verdict if outcome.verdict == "killed" else outcome.verdict.upper()
    known = " (known)" if outcome.mutant.known else ""
    print(
        f"{place:10}{verdict + known:18}{outcome.seconds:4.0f} s  {outcome.mutant.name}: "
        f"{outcome.mutant.breaks}\n{'':36}{outcome.why}",
        flush=True,
    )


def _summary(outcomes: Sequence[Outcome], n_chosen: int, seconds: float) -> int:
    expected = Counter(each.verdict for each in outcomes if not each.mutant.known)
    known = [each for each in outcomes if each.mutant.known]
    wrong = [each for each in outcomes if each.is_wrong]
    print(
        f"\n{n_chosen} mutants in {seconds / 60:.1f} min: {expected['killed']} killed, "
        f"{expected['survived']} survived, {expected['broken']} broken, "
        f"{n_chosen - len(outcomes)} not run; {len(known)} known"
    )
    for each in known:
        print(f"known: {each.mutant.name}: {' '.join(each.mutant.known.split())}")
    for each in wrong:
        if each.mutant.known and each.verdict == "killed":
            print("It is killed now, so that its `known` can go:")
        _show(each)
    return 1 if wrong or len(outcomes) < n_chosen else 0


if __name__ == "__main__":
    sys.exit(main())
