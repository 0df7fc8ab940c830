"""How learning rate and sparsity change over the steps."""


def lr_share(
    step: int, n_steps: int, warm_up: float | int = 0.0, decay: float | int = 0.0
) -> float:
    """How much of the learning rate a step gets, 0 to 1: a linear rise, then a linear fall.

    Args:
        step: The step, counted from 0.
        n_steps: How many there are.
        warm_up: Share of the steps over which it rises.
        decay: Share of the steps, at the end, over which it falls. No step gets 0.

    >>> [lr_share(step, 6, warm_up=0.5, decay=0.5) for step in range(6)]
    [0.3333333333333333, 0.6666666666666666, 1.0, 1.0, 0.6666666666666666, 0.3333333333333333]
    """
    left = n_steps - step
    n_decay = round(decay * n_steps)
    return min(warm_up_share(step, n_steps, warm_up), left / n_decay if n_decay else 1.0)


def warm_up_share(step: int, n_steps: int, warm_up: float | int) -> float:
    """How far a linear rise over the first share of the steps has come, 0 to 1.

    >>> [warm_up_share(step, 4, 0.5) for step in range(4)]
    [0.5, 1.0, 1.0, 1.0]
    """
    n_warm_up = round(warm_up * n_steps)
    return min(1.0, (step + 1) / n_warm_up) if n_warm_up else 1.0
