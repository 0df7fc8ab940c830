"""What a mutant is: one fault, as a user might meet it, and the tests that have to notice it."""

import ast
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Mutant:
    """A fault in the package.

    Args:
        name: How it is called on the command line.
        breaks: What goes wrong, in a line.
        file: The file, from the folder of the package.
        old: What stands there, exactly once.
        new: What stands there instead.
        tests: The tests to run against it: files or node ids below tests/, of the default run.
        known: Why no test notices it yet; the run fails as soon as one does.
    """

    name: str
    breaks: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    known: str = ""

    def changed(self, text: str) -> str:
        """The file's text with the fault.

        Raises:
            ValueError: The old text does not stand there exactly once.
            SyntaxError: What is made of it is no Python.
        """
        n = text.count(self.old)
        if n != 1 or self.old == self.new:
            raise ValueError(f"{self.name}: {n} times in {self.file}: {self.old!r}")
        changed = text.replace(self.old, self.new)
        ast.parse(changed)
        return changed


def write(path: Path, text: str) -> None:
    """Write a source file, and take away what Python has compiled of it."""
    path.write_text(text)
    for compiled in path.parent.glob(f"__pycache__/{path.stem}.*"):
        compiled.unlink()
