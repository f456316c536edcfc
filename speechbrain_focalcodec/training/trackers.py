"""Where a training's numbers, audio and pictures go beside the log files."""

import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from speechbrain_focalcodec.errors import ConfigError
from speechbrain_focalcodec.utils.extras import import_extra
from speechbrain_focalcodec.utils.files import atomic_write_text

__all__ = [
    "TensorBoardTracker",
    "Tracker",
    "WandBTracker",
    "make_trackers",
]


class Tracker:
    """What shows a training while it runs.

    Making one fails when its library is missing; nothing is written before
    :meth:`start`, which the main process alone calls. SpeechBrain's own
    loggers count calls in place of steps, so that a resumed run is drawn over
    its first part; these do not.
    """

    def start(
        self, folder: Path, config: Mapping[str, Any], step: int | None
    ) -> None:
        """Begin, or go on with what is there.

        Arguments
        ---------
        folder : Path
            Output folder of the run.
        config : Mapping[str, Any]
            Plain hyperparameters by name.
        step : int, optional
            The step that the run resumes from (0: it starts anew); None to
            add to what is there.
        """
        raise NotImplementedError

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Show numbers.

        Arguments
        ---------
        values : Mapping[str, float]
            By name, such as ``valid/mel``.
        step : int
            Steps of the optimizer so far.
        """
        raise NotImplementedError

    def audio(
        self, name: str, sig: torch.Tensor, sample_rate: int, step: int
    ) -> None:
        """Let a signal be heard.

        Arguments
        ---------
        name : str
            What it is.
        sig : torch.Tensor
            Waveform [T], on the CPU.
        sample_rate : int
            Its sample rate (Hz).
        step : int
            Steps of the optimizer so far.
        """
        raise NotImplementedError

    def picture(self, name: str, path: Path, step: int) -> None:
        """Show a picture.

        Arguments
        ---------
        name : str
            What it is.
        path : Path
            A PNG file.
        step : int
            Steps of the optimizer so far.
        """
        raise NotImplementedError

    def flush(self) -> None:
        """Bring to disk what is still held back."""


class TensorBoardTracker(Tracker):
    """Writes event files to the folder `tensorboard` of a run.

    Raises
    ------
    ImportError
        If TensorBoard is not installed; the message says how to get it.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> tracker = TensorBoardTracker()
    >>> tracker.start(folder, {}, 0)
    >>> tracker.scalars({"train/loss": 1.0}, 50)
    >>> len(list((folder / "tensorboard").iterdir()))
    1
    """

    def __init__(self) -> None:
        import_extra("tensorboard", "tensorboard")

    def start(
        self, folder: Path, config: Mapping[str, Any], step: int | None
    ) -> None:
        """Open an event file that supersedes what lies beyond `step`.

        Arguments
        ---------
        folder : Path
            Output folder of the run.
        config : Mapping[str, Any]
            Shown as a table.
        step : int, optional
            The step that the run resumes from.
        """
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(
            str(folder / "tensorboard"),
            purge_step=None if step is None else step + 1,
        )
        if config:
            rows = [f"| {key} | {value} |" for key, value in config.items()]
            table = "\n".join(["| key | value |", "|---|---|", *rows])
            self._writer.add_text("hyperparameters", table, step or 0)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def audio(
        self, name: str, sig: torch.Tensor, sample_rate: int, step: int
    ) -> None:
        self._writer.add_audio(name, sig[None], step, sample_rate)

    def picture(self, name: str, path: Path, step: int) -> None:
        from matplotlib.image import imread

        pixels = imread(path)[..., :3]
        self._writer.add_image(name, pixels, step, dataformats="HWC")

    def flush(self) -> None:
        self._writer.flush()


class WandBTracker(Tracker):
    """Sends a run to Weights & Biases.

    A run that resumes goes on under the same id, which is kept in
    `wandb/id.txt` of the output folder. Steps that are done twice stay in
    Weights & Biases twice: what was sent cannot be taken back.

    Arguments
    ---------
    **options : Any
        For `wandb.init`, such as ``project`` and ``entity``; without them
        its own environment variables (WANDB_PROJECT, ...) decide.

    Raises
    ------
    ImportError
        If wandb is not installed; the message says how to get it.
    """

    def __init__(self, **options: Any) -> None:
        self._wandb: Any = import_extra("wandb", "wandb")
        self._options = options

    def start(
        self, folder: Path, config: Mapping[str, Any], step: int | None
    ) -> None:
        """Start a run, or go on with that of the folder.

        Arguments
        ---------
        folder : Path
            Output folder of the run; its name is the run's.
        config : Mapping[str, Any]
            Kept as the run's configuration.
        step : int, optional
            The step that the run resumes from; 0 starts another run.
        """
        file = folder / "wandb" / "id.txt"
        if step == 0 or not file.is_file():
            atomic_write_text(file, uuid.uuid4().hex[:12] + "\n")
        options = {
            "id": file.read_text(encoding="utf-8").strip(),
            "name": folder.name,
            "dir": str(folder),
            "config": dict(config),
            "resume": "allow",
            **self._options,
        }
        self._run = self._wandb.init(**options)
        # Its own count of steps cannot go back; ours is one more number.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self._run.log({**values, "step": step})

    def audio(
        self, name: str, sig: torch.Tensor, sample_rate: int, step: int
    ) -> None:
        sound = self._wandb.Audio(sig.numpy(), sample_rate=sample_rate)
        self._run.log({name: sound, "step": step})

    def picture(self, name: str, path: Path, step: int) -> None:
        self._run.log({name: self._wandb.Image(str(path)), "step": step})


_NAMES = {"tensorboard": TensorBoardTracker, "wandb": WandBTracker}


def make_trackers(loggers: Iterable[str | Tracker] | None) -> list[Tracker]:
    """The trackers that a YAML asks for.

    Arguments
    ---------
    loggers : iterable of str or Tracker, optional
        ``tensorboard``, ``wandb``, or trackers made by the YAML (such as
        ``!new:speechbrain_focalcodec.training.trackers.WandBTracker`` with
        options); None for none.

    Returns
    -------
    list of Tracker
        Not started yet.

    Raises
    ------
    ConfigError
        If a name is unknown.
    ImportError
        If a library is missing; the message says how to get it.

    Example
    -------
    >>> [type(x).__name__ for x in make_trackers(["tensorboard"])]
    ['TensorBoardTracker']
    """
    if isinstance(loggers, str):
        loggers = [loggers]
    trackers: list[Tracker] = []
    for logger in loggers or []:
        if isinstance(logger, Tracker):
            trackers.append(logger)
        elif logger in _NAMES:
            trackers.append(_NAMES[logger]())
        else:
            raise ConfigError(
                f"loggers: {logger!r} is unknown; choose from "
                f"{', '.join(_NAMES)}, or give a Tracker"
            )
    return trackers
