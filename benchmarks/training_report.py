"""What a stage plans and what its steps cost, as a table."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hyperpyyaml import resolve_references
from reporting import markdown_table, show
from ruamel.yaml import YAML

# What the releases were trained on: utterances of train-clean-100 in
# LibriSpeech (16 kHz) and LibriTTS (24 kHz), and all of LibriTTS.
CLEAN_100 = {16000: 28539, 24000: 33236}
ALL_HOURS = 585.0
ALL_SPLITS = ["train-clean-100", "train-clean-360", "train-other-500"]


@dataclass(frozen=True)
class Plan:
    """What a YAML plans.

    Arguments
    ---------
    batch_size : int
        Items a step.
    what : str, optional
        How long it trains, in words; None where that is not known.
    hours : float, optional
        The same in hours of audio.
    """

    batch_size: int
    what: str | None = None
    hours: float | None = None


@dataclass(frozen=True)
class Cost:
    """What a stage's step costs, and what the stage would.

    Arguments
    ---------
    yaml, model : str
        Names of the stage's YAML and of the model.
    plan : Plan
        Of the YAML.
    trained, discriminator : int
        Parameters that learn, without and of a discriminator.
    precision : str
        Such as ``"fp32"``.
    batch_size, steps : int
        Items a step, and steps measured.
    item_seconds : float
        Mean duration of an item, without padding.
    padding : float
        Share of the batches that was padding.
    steps_per_second, audio_per_second : float
        Speed: steps, and seconds of audio.
    peak_mib : float, optional
        Highest use of memory in these steps: of the process on a CPU, of
        tensors on CUDA. None where the system does not tell.
    loss : float
        Of the last step, to see that it is finite.
    """

    yaml: str
    model: str
    plan: Plan
    trained: int
    discriminator: int
    precision: str
    batch_size: int
    steps: int
    item_seconds: float
    padding: float
    steps_per_second: float
    audio_per_second: float
    peak_mib: float | None
    loss: float

    @property
    def hours(self) -> float | None:
        """Time for the plan at this speed."""
        if self.plan.hours is None:
            return None
        return self.plan.hours / self.audio_per_second


def read_plan(path: Path) -> Plan:
    """Tell what a YAML plans.

    Arguments
    ---------
    path : Path
        The YAML.

    Returns
    -------
    Plan
        Steps where it has random segments, otherwise an epoch of all splits.
    """
    given = dict.fromkeys(("data_folder", "encoder_source", "start_from"), "")
    with open(path, encoding="utf-8") as stream:
        hparams = YAML(typ="rt").load(resolve_references(stream, given))
    size, rate = hparams["batch_size"], hparams["sample_rate"]
    segment = hparams["train_data_options"].get("segment_samples")
    if hparams.get("segment_frames") is not None:
        hop = hparams["model"]["decoder"]["hop_length"]
        segment = hparams["segment_frames"] * hop
    splits = hparams["train_splits"]
    steps = hparams.get("total_steps")
    if segment is None:
        if splits != ALL_SPLITS:
            return Plan(size)
        return Plan(size, f"an epoch of {ALL_HOURS:.0f} h", ALL_HOURS)
    if steps is None and splits == ALL_SPLITS[:1]:
        steps = hparams["number_of_epochs"] * (CLEAN_100[rate] // size)
    if steps is None:
        return Plan(size)
    hours = steps * size * segment / rate / 3600
    return Plan(size, f"{steps:,} steps", hours)


@dataclass(frozen=True)
class Pace:
    """How fast a stage steps, done in one of several ways.

    Arguments
    ---------
    yaml, way : str
        The stage, and how it is done.
    batch_size : int
        Utterances a step.
    item_seconds, padding : float
        Mean duration of what an utterance gives, and share of padding.
    seconds, cpu : float
        Least seconds of a step, and of its CPU time.
    reading : float
        Least share of the CPU time for reading.
    """

    yaml: str
    way: str
    batch_size: int
    item_seconds: float
    padding: float
    seconds: float
    cpu: float
    reading: float


def make_pace_table(paces: Sequence[Pace]) -> str:
    """Write paces as a Markdown table.

    Arguments
    ---------
    paces : sequence of Pace
        The rows.

    Returns
    -------
    str
        The table.
    """
    head = ["YAML", "how", "batch", "padding", "steps/s", "CPU s/step"]
    head.append("reading")
    rows = [
        [
            pace.yaml,
            pace.way,
            f"{pace.batch_size} x {pace.item_seconds:.2f} s",
            show(pace.padding, ".0%"),
            show(1 / pace.seconds),
            show(pace.cpu),
            show(pace.reading, ".2%"),
        ]
        for pace in paces
    ]
    return markdown_table(head, rows)


def show_time(hours: float | None) -> str:
    """Write a time into a table.

    Arguments
    ---------
    hours : float, optional
        The time.

    Returns
    -------
    str
        With a unit that suits it.

    Example
    -------
    >>> show_time(0.25), show_time(5), show_time(100), show_time(None)
    ('15 min', '5 h', '4.17 days', '–')
    """
    if hours is None:
        return show(None)
    for unit, per_hour, most in (("min", 60, 2), ("h", 1, 48)):
        if hours < most:
            return f"{show(float(hours * per_hour))} {unit}"
    days = hours / 24
    return f"{days:,.0f} days" if days >= 100 else f"{show(days)} days"


def make_table(costs: Sequence[Cost]) -> str:
    """Write the costs as a Markdown table.

    Arguments
    ---------
    costs : sequence of Cost
        The rows.

    Returns
    -------
    str
        The table.
    """
    head = [
        "YAML",
        "trains (M)",
        "batch (YAML's)",
        "padding",
        "steps/s",
        "audio in 1 s (s)",
        "peak memory (MiB)",
        "the YAML's plan",
        "takes",
    ]
    rows = []
    for cost in costs:
        trained = show(cost.trained / 1e6)
        if cost.discriminator:
            trained += f" + {show(cost.discriminator / 1e6)}"
        batch = f"{cost.batch_size} ({cost.plan.batch_size})"
        rows.append(
            [
                cost.yaml,
                trained,
                f"{batch} x {cost.item_seconds:.2f} s",
                show(cost.padding, ".0%"),
                show(cost.steps_per_second),
                show(cost.audio_per_second),
                show(cost.peak_mib, ",.0f"),
                show(cost.plan.what),
                show_time(cost.hours),
            ]
        )
    return markdown_table(head, rows)
