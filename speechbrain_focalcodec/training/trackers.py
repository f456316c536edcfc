"""Trackers: TensorBoard and Weights & Biases."""

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
    """Base class of trackers.

    The constructor fails if the library is missing. Only the main process calls
    :meth:`start`, before any other method. Unlike SpeechBrain's loggers,
    trackers get the optimizer step, so that a resumed run continues its curves.
    """

    def start(
        self, folder: Path, config: Mapping[str, Any], step: int | None
    ) -> None:
        """Start or continue tracking.

        Arguments
        ---------
        folder : Path
            Output folder of the run.
        config : Mapping[str, Any]
            Plain hyperparameters by name.
        step : int, optional
            Step that the run resumes from; 0 for a new run, None to append.
        """
        raise NotImplementedError

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Track scalars by name, such as ``valid/mel``."""
        raise NotImplementedError

    def audio(
        self, name: str, sig: torch.Tensor, sample_rate: int, step: int
    ) -> None:
        """Track a waveform [T] on the CPU."""
        raise NotImplementedError

    def picture(self, name: str, path: Path, step: int) -> None:
        """Track a PNG file."""
        raise NotImplementedError

    def flush(self) -> None:
        """Write buffered data."""


class TensorBoardTracker(Tracker):
    """Writes event files to the folder `tensorboard` of a run."""

    def __init__(self) -> None:
        import_extra("tensorboard", "tensorboard")

    def start(
        self, folder: Path, config: Mapping[str, Any], step: int | None
    ) -> None:
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

    A resumed run keeps its id, stored in `wandb/id.txt` of the output folder.
    Repeated steps appear twice, since sent data cannot be removed.

    Arguments
    ---------
    **options : Any
        For `wandb.init`, such as ``project`` and ``entity``; by default wandb's
        environment variables (WANDB_PROJECT, ...) are used.
    """

    def __init__(self, **options: Any) -> None:
        self._wandb: Any = import_extra("wandb", "wandb")
        self._options = options

    def start(
        self, folder: Path, config: Mapping[str, Any], step: int | None
    ) -> None:
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
        # wandb's own step counter cannot go back.
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
    """Make the trackers of the hyperparameter ``loggers``.

    Names are ``tensorboard`` and ``wandb``; a YAML can also make trackers, such
    as ``!new:speechbrain_focalcodec.training.trackers.WandBTracker``.
    ConfigError if a name is unknown, ImportError if a library is missing.
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
