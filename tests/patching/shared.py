"""What tests of patching measure, and how they are stopped."""

from torch import Tensor

from hooked_whisper.metrics.tokens import LogitDifference

DIFFERENCE = LogitDifference(right=3, wrong=5, pos=-2)


def difference(logits: Tensor) -> Tensor:
    return logits[:, -2, 3] - logits[:, -2, 5]


class Stop:
    """A metric that is stopped by Ctrl-C, or fails, at its n-th call."""

    def __init__(self, after: int, error: type[BaseException] = KeyboardInterrupt) -> None:
        self.left, self.error = after, error

    def __call__(self, logits: Tensor) -> Tensor:
        self.left -= 1
        if self.left < 0:
            raise self.error
        return difference(logits)
