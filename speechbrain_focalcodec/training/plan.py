"""Whether a run is as long as its learning rate was planned for."""

from typing import Any

from speechbrain.utils.logger import get_logger

__all__ = ["check_plan", "planned_steps", "shorten_warmup"]

logger = get_logger(__name__)

# What rounding to epochs may leave.
_TOLERANCE = 0.05


def planned_steps(
    epochs: int, batches: int, accumulation: int = 1, limit: int | None = None
) -> int:
    """Tell how many steps a run takes.

    Arguments
    ---------
    epochs : int
        At most so many.
    batches : int
        Batches of an epoch.
    accumulation : int
        Batches of a step.
    limit : int, optional
        Steps that the run ends at, ``optimizer_step_limit``.

    Returns
    -------
    int
        Steps of the optimizer.

    Example
    -------
    >>> planned_steps(10, 54), planned_steps(10, 54, 4, 100)
    (540, 100)
    """
    steps = epochs * (batches // accumulation)
    return steps if limit is None else min(steps, limit)


def check_plan(schedule: Any, steps: int) -> bool:
    """Warn of a run that is shorter or longer than its schedule.

    Of a shorter one the learning rate never falls to its end, of a longer one
    it is zero for the rest.

    Arguments
    ---------
    schedule : object
        Of the learning rate by steps, with ``total_steps``.
    steps : int
        Of the run.

    Returns
    -------
    bool
        Whether they agree, within a few percent.

    Example
    -------
    >>> from types import SimpleNamespace
    >>> check_plan(SimpleNamespace(total_steps=100), 98)
    True
    """
    total = schedule.total_steps
    if abs(steps - total) <= _TOLERANCE * total:
        return True
    effect = "will not fall to its end" if steps < total else "ends at zero"
    logger.warning(
        "The run will take %d steps, but total_steps is %d: the learning rate "
        "%s. Give --total_steps=%d, or another number_of_epochs or "
        "optimizer_step_limit",
        *(steps, total, effect, steps),
    )
    return False


def shorten_warmup(schedule: Any) -> bool:
    """Let a learning rate that would only warm up reach its height.

    A run of fewer steps than its warm-up ends before the learning rate is
    what was asked for. It then warms up for a tenth of its steps.

    Arguments
    ---------
    schedule : object
        Of the learning rate by steps, with ``total_steps`` and perhaps
        ``warmup``, which is changed.

    Returns
    -------
    bool
        Whether it was changed, which a warning tells.

    Example
    -------
    >>> from types import SimpleNamespace
    >>> schedule = SimpleNamespace(warmup=200, total_steps=100)
    >>> shorten_warmup(schedule), schedule.warmup
    (True, 10)
    """
    warmup, total = getattr(schedule, "warmup", 0), schedule.total_steps
    if warmup < total:
        return False
    schedule.warmup = total // 10
    logger.warning(
        "The learning rate would warm up for %d steps, but total_steps is %d: "
        "it warms up for %d. Give --lr_schedule='{warmup: N}' for others",
        *(warmup, total, schedule.warmup),
    )
    return True
