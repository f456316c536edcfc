"""Compares the steps of a run with its learning rate schedule."""

from typing import Any

from speechbrain.utils.logger import get_logger

__all__ = ["check_plan", "planned_steps", "shorten_warmup"]

logger = get_logger(__name__)

# Relative difference that rounding to epochs may cause.
_TOLERANCE = 0.05


def planned_steps(
    epochs: int, batches: int, accumulation: int = 1, limit: int | None = None
) -> int:
    """Number of optimizer steps of a run.

    `batches` are those of an epoch, `accumulation` is batches per step, `limit`
    the ``optimizer_step_limit``.
    """
    steps = epochs * (batches // accumulation)
    return steps if limit is None else min(steps, limit)


def check_plan(schedule: Any, steps: int) -> bool:
    """Whether a run has about the steps of its schedule; warns if not.

    In a shorter run the learning rate does not fall to its end, in a longer
    one it is zero for the rest.
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
    """Shorten a warm-up that is longer than the run to a tenth of it.

    Returns whether ``schedule.warmup`` was changed, which is also logged.
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
