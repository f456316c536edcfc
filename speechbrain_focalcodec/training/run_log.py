"""A training's numbers as lines of JSON, and for whoever else shall see them.

`metrics.jsonl` lies in a run's output folder beside the `train_log.txt` of
SpeechBrain's logger, which rounds and has a line an epoch. A line holds
``split``, ``step`` (of the optimizer), ``epoch`` and scalars by name; what is
not finite is null. The splits:

- ``train``: means over the steps since the last such line;
- ``train_epoch``: over an epoch, as in `train_log.txt`;
- ``valid``, ``test``, and ``evaluation`` at the end.
"""

import json
import math
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from speechbrain.utils.distributed import if_main_process
from speechbrain.utils.logger import get_logger

from speechbrain_focalcodec.errors import DataError
from speechbrain_focalcodec.training.averages import Averages
from speechbrain_focalcodec.training.trackers import Tracker, make_trackers
from speechbrain_focalcodec.utils.files import atomic_write_text

__all__ = ["METRICS_FILE", "RunLog", "gradient_norm", "read_metrics"]

METRICS_FILE = "metrics.jsonl"
# What identifies a line; the rest are scalars.
KEYS = ("split", "step", "epoch")
# The lines of a run's end, of the checkpoint that is the best.
FINAL = ("test", "evaluation")
# How SpeechBrain's logger begins the line of an epoch.
_EPOCH = re.compile(r"epoch: (\d+)")
# A sound of each validation adds up: trackers get the first seconds alone.
MEDIA_SECONDS = 10

logger = get_logger(__name__)


class RunLog:
    """Writes `metrics.jsonl` and passes its numbers on to trackers.

    All processes of a run may call it; the main one writes.

    Arguments
    ---------
    folder : str or Path
        Output folder of the run.
    interval : int
        Steps of the optimizer from one line of training to the next.
    loggers : iterable of str or Tracker, optional
        See :func:`~speechbrain_focalcodec.training.trackers.make_trackers`.
    config : Mapping[str, Any], optional
        Hyperparameters, of which the plain ones are shown by trackers.
    text : str or Path, optional
        The file that SpeechBrain's logger writes, `train_log.txt`.

    Raises
    ------
    ValueError
        If the interval is not positive.
    ImportError
        If the library of a tracker is missing.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> log = RunLog(folder, interval=2)
    >>> log.resume(0)
    >>> for step, loss in enumerate([4.0, 2.0], start=1):
    ...     log.window.add("loss", loss)
    ...     log.step_done(step, epoch=1, lr=0.1)
    >>> (line,) = read_metrics(folder)
    >>> line["split"], line["step"], line["loss"], line["lr"]
    ('train', 2, 3.0, 0.1)
    """

    def __init__(
        self,
        folder: str | Path,
        interval: int = 50,
        loggers: Iterable[str | Tracker] | None = None,
        config: Mapping[str, Any] | None = None,
        text: str | Path | None = None,
    ):
        if interval < 1:
            raise ValueError(f"log_interval must be positive, not {interval}")
        self.folder = Path(folder)
        self.text = None if text is None else Path(text)
        self.interval = interval
        #: Means since the last line; saved with a checkpoint, so that a run
        #: that resumes writes the lines that it would have written.
        self.window = Averages()
        self._trackers = make_trackers(loggers)
        self._started = False
        self._config = {
            key: value
            for key, value in (config or {}).items()
            if isinstance(value, bool | int | float | str)
        }
        self._last = time.perf_counter()
        self._audio: torch.Tensor | float = 0.0

    def resume(self, step: int, epochs: int | None = None) -> None:
        """Begin, removing the lines beyond what a run resumes from.

        A run that starts anew in the folder of another moves its logs aside,
        to `metrics.1.jsonl`, `train_log.1.txt` and so on.

        Arguments
        ---------
        step : int
            Steps of the optimizer so far.
        epochs : int, optional
            Epochs that have ended. Where the last one has not, its lines may
            be there all the same, from a run that was killed before its
            checkpoint.
        """
        if not if_main_process():
            return
        path = self.folder / METRICS_FILE
        for old in filter(None, (path, self.text)):
            if step == 0 and old.is_file():
                aside = _free_name(old)
                os.replace(old, aside)
                logger.info(f"{old}: of an earlier run, now {aside.name}")
        if epochs is not None:
            self._drop_epochs(step, epochs)
        self._start(step)

    def _drop_epochs(self, step: int, epochs: int) -> None:
        """Remove lines that the run will write again."""

        def is_past(line: dict[str, Any]) -> bool:
            if line["split"] == "train":
                # That of a mean which goes on was written at a run's end.
                return line["step"] < step or not self.window
            return line["split"] in FINAL or line["epoch"] <= epochs

        _keep_lines(self.folder / METRICS_FILE, is_past)
        if self.text is not None and self.text.is_file():
            _keep_text(
                self.text,
                lambda line: (
                    not (
                        (found := _EPOCH.match(line)) and int(found[1]) > epochs
                    )
                ),
            )

    def forget_text(self, beginning: str) -> None:
        """Remove lines of `train_log.txt` that are to be written again.

        Arguments
        ---------
        beginning : str
            What they begin with.
        """
        if self.text is not None and self.text.is_file() and if_main_process():
            _keep_text(self.text, lambda line: not line.startswith(beginning))

    def start_clock(self) -> None:
        """Measure the time of the next step from now."""
        self._last = time.perf_counter()

    def heard(self, seconds: torch.Tensor | float) -> None:
        """Count audio that a step was trained on.

        Arguments
        ---------
        seconds : torch.Tensor or float
            Its duration, without padding.
        """
        self._audio += seconds

    def step_done(self, step: int, epoch: int, lr: float) -> None:
        """Count a step of the optimizer, and write a line if one is due.

        Arguments
        ---------
        step : int
            Steps of the optimizer so far.
        epoch : int
            The epoch.
        lr : float
            Learning rate of the step.
        """
        now = time.perf_counter()
        self.window.add("seconds_per_step", now - self._last)
        self.window.add("audio_per_step", float(self._audio))
        self._last, self._audio = now, 0.0
        if step % self.interval == 0:
            self.write_window(step, epoch, lr)

    def write_window(self, step: int, epoch: int, lr: float) -> None:
        """Write a line of the means so far, if any, and start anew.

        Arguments
        ---------
        step : int
            Steps of the optimizer so far.
        epoch : int
            The epoch.
        lr : float
            Learning rate of the last step.
        """
        means = self.window.means()
        self.window.clear()
        if not means:
            return
        audio = means.pop("audio_per_step", 0.0)
        if audio > 0:
            audio *= _world_size()
            means["audio_per_second"] = audio / means["seconds_per_step"]
        self.write("train", step, epoch, {"lr": lr, **means})

    def write(
        self,
        split: str,
        step: int,
        epoch: int,
        values: Mapping[str, float],
    ) -> None:
        """Write a line.

        Arguments
        ---------
        split : str
            ``train``, ``train_epoch``, ``valid``, ``test`` or ``evaluation``.
        step : int
            Steps of the optimizer so far.
        epoch : int
            The epoch.
        values : Mapping[str, float]
            Scalars by name.
        """
        if not if_main_process():
            return
        line: dict[str, Any] = {"split": split, "step": step, "epoch": epoch}
        for name, value in values.items():
            value = float(value)
            line[name] = value if math.isfinite(value) else None
        self._start(None)
        if split in FINAL:
            # The same checkpoint again, by a run that had ended.
            _keep_lines(
                self.folder / METRICS_FILE,
                lambda old: (old["split"], old["step"]) != (split, step),
            )
        with open(self.folder / METRICS_FILE, "a", encoding="utf-8") as stream:
            stream.write(json.dumps(line, allow_nan=False) + "\n")
        for tracker in self._trackers:
            tracker.scalars(
                {f"{split}/{name}": float(x) for name, x in values.items()},
                step,
            )
            if split != "train":
                tracker.flush()

    def audio(
        self, name: str, sig: torch.Tensor, sample_rate: int, step: int
    ) -> None:
        """Pass a signal on to the trackers.

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
        self._start(None)
        for tracker in self._trackers:
            sig = sig[: MEDIA_SECONDS * sample_rate]
            tracker.audio(name, sig, sample_rate, step)

    def picture(self, name: str, path: Path, step: int) -> None:
        """Pass a picture on to the trackers.

        Arguments
        ---------
        name : str
            What it is.
        path : Path
            A PNG file.
        step : int
            Steps of the optimizer so far.
        """
        self._start(None)
        for tracker in self._trackers:
            tracker.picture(name, path, step)

    def _start(self, step: int | None) -> None:
        if self._started and step is None:
            return
        self._started = True
        self.folder.mkdir(parents=True, exist_ok=True)
        limit = math.inf if step is None else step
        _keep_lines(
            self.folder / METRICS_FILE, lambda line: line["step"] <= limit
        )
        for tracker in self._trackers:
            tracker.start(self.folder, self._config, step)


def gradient_norm(
    optimizer: torch.optim.Optimizer, scale: float = 1.0
) -> float:
    """Norm of the gradients of all that an optimizer trains.

    Arguments
    ---------
    optimizer : torch.optim.Optimizer
        Its parameters have gradients, or some of them.
    scale : float
        What the loss was multiplied by before (that of a GradScaler).

    Returns
    -------
    float
        Of the gradients as they are: call it before clipping.

    Example
    -------
    >>> weight = torch.nn.Parameter(torch.zeros(2))
    >>> weight.grad = torch.tensor([3.0, 4.0])
    >>> gradient_norm(torch.optim.SGD([weight], lr=1.0))
    5.0
    """
    gradients = [
        parameter.grad
        for group in optimizer.param_groups
        for parameter in group["params"]
        if parameter.grad is not None
    ]
    return float(torch.nn.utils.get_total_norm(gradients)) / scale


def read_metrics(run: str | Path) -> list[dict[str, Any]]:
    """Read the `metrics.jsonl` of a run.

    Arguments
    ---------
    run : str or Path
        Output folder of the run, or the file.

    Returns
    -------
    list of dict
        A line each, in the order of the file; of several with the same split
        and step, the last. Values that were not finite are nan. Lines that
        are torn are left out.

    Raises
    ------
    DataError
        If the file is missing or holds no line of such a log.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> line = '{"split": "valid", "step": 3, "epoch": 1, "loss": null}'
    >>> _ = (folder / "metrics.jsonl").write_text(line + '\\n{"split": "va')
    >>> read_metrics(folder)
    [{'split': 'valid', 'step': 3, 'epoch': 1, 'loss': nan}]
    """
    path = Path(run)
    if path.is_dir():
        path = path / METRICS_FILE
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for line in filter(None, map(_parse, text.splitlines())):
        key = line["split"], line["step"]
        # The last one, in its own place.
        found.pop(key, None)
        found[key] = {
            name: math.nan if value is None else value
            for name, value in line.items()
        }
    if not found:
        raise DataError(f"{path}: holds no line of a training's log")
    return list(found.values())


def _parse(text: str) -> dict[str, Any] | None:
    """A line of the log; None when it is torn."""
    try:
        line = json.loads(text)
    except ValueError:
        return None
    return line if isinstance(line, dict) and line.keys() >= set(KEYS) else None


def _keep_lines(path: Path, is_kept: Callable[[dict[str, Any]], bool]) -> None:
    """Rewrite `metrics.jsonl` with some of its lines, without torn ones."""
    if path.is_file():
        _keep_text(
            path,
            lambda text: (line := _parse(text)) is not None and is_kept(line),
        )


def _keep_text(path: Path, is_kept: Callable[[str], bool]) -> None:
    """Rewrite a file with some of its lines."""
    text = path.read_text(encoding="utf-8", errors="replace")
    new = "".join(line + "\n" for line in text.splitlines() if is_kept(line))
    if new != text:
        atomic_write_text(path, new)


def _world_size() -> int:
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return 1
    return distributed.get_world_size()


def _free_name(path: Path) -> Path:
    """The first of metrics.1.jsonl, metrics.2.jsonl, ... that is free."""
    number = 1
    while (
        free := path.with_name(f"{path.stem}.{number}{path.suffix}")
    ).exists():
        number += 1
    return free
