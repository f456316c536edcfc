"""Logs of a training: `metrics.jsonl`, and trackers.

`metrics.jsonl` is in the output folder beside SpeechBrain's `train_log.txt`.
Each line holds ``split``, ``step`` (of the optimizer), ``epoch`` and scalars by
name; values that are not finite are null. The splits are ``train`` (means since
the last such line), ``train_epoch`` (means over an epoch), ``valid``, ``test``
and ``evaluation``.
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
from speechbrain_focalcodec.training.distributed import num_processes
from speechbrain_focalcodec.training.trackers import Tracker, make_trackers
from speechbrain_focalcodec.utils.files import atomic_write_text

__all__ = ["METRICS_FILE", "RunLog", "gradient_norm", "read_metrics"]

METRICS_FILE = "metrics.jsonl"
# Keys of each line; the others are scalars.
KEYS = ("split", "step", "epoch")
# Splits that are logged at the end, for the best checkpoint.
FINAL = ("test", "evaluation")
# Beginning of an epoch's line in SpeechBrain's log.
_EPOCH = re.compile(r"epoch: (\d+)")
# Trackers get only the first seconds of each sample.
MEDIA_SECONDS = 10

logger = get_logger(__name__)


class RunLog:
    """Writes `metrics.jsonl` and forwards its values to trackers.

    Call it on all processes; only the main process writes.

    Arguments
    ---------
    folder : str or Path
        Output folder of the run.
    interval : int
        Optimizer steps per line of training.
    loggers : iterable of str or Tracker, optional
        See :func:`~speechbrain_focalcodec.training.trackers.make_trackers`.
    config : Mapping[str, Any], optional
        Hyperparameters; trackers show the plain ones.
    text : str or Path, optional
        File of SpeechBrain's logger, `train_log.txt`.
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
        #: Means since the last line; saved with checkpoints, so that a
        #: resumed run writes the same lines.
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
        """Remove the lines after the checkpoint that the run resumes from.

        A run that starts anew (step 0) first renames old logs to
        `metrics.1.jsonl`, `train_log.1.txt` and so on. A killed run may have
        logged more than `epochs` completed epochs; these lines are removed.
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
                # A line at this step with an open window is written again.
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

    def remove_text(self, beginning: str) -> None:
        """Remove lines of `train_log.txt` with this beginning."""
        if self.text is not None and self.text.is_file() and if_main_process():
            _keep_text(self.text, lambda line: not line.startswith(beginning))

    def start_clock(self) -> None:
        """Start timing the next step."""
        self._last = time.perf_counter()

    def add_audio(self, seconds: torch.Tensor | float) -> None:
        """Add seconds of audio, without padding, to the current step."""
        self._audio += seconds

    def step_done(self, step: int, epoch: int, lr: float) -> None:
        """Log an optimizer step; writes a line at each interval."""
        now = time.perf_counter()
        self.window.add("seconds_per_step", now - self._last)
        self.window.add("audio_per_step", float(self._audio))
        self._last, self._audio = now, 0.0
        if step % self.interval == 0:
            self.write_window(step, epoch, lr)

    def write_window(self, step: int, epoch: int, lr: float) -> None:
        """Write a line of the means since the last one, if any."""
        means = self.window.means()
        self.window.clear()
        if not means:
            return
        audio = means.pop("audio_per_step", 0.0)
        if audio > 0:
            audio *= num_processes()
            means["audio_per_second"] = audio / means["seconds_per_step"]
        self.write("train", step, epoch, {"lr": lr, **means})

    def write(
        self,
        split: str,
        step: int,
        epoch: int,
        values: Mapping[str, float],
    ) -> None:
        """Write a line with scalars by name."""
        if not if_main_process():
            return
        line: dict[str, Any] = {"split": split, "step": step, "epoch": epoch}
        for name, value in values.items():
            value = float(value)
            line[name] = value if math.isfinite(value) else None
        self._start(None)
        if split in FINAL:
            # A finished run that tests again replaces its line.
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
        """Send a waveform [T] on the CPU to the trackers."""
        self._start(None)
        for tracker in self._trackers:
            sig = sig[: MEDIA_SECONDS * sample_rate]
            tracker.audio(name, sig, sample_rate, step)

    def picture(self, name: str, path: Path, step: int) -> None:
        """Send a PNG file to the trackers."""
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
    """Norm of all gradients of an optimizer; call it before clipping.

    `scale` is the factor of the loss, such as a GradScaler's.
    """
    gradients = [
        parameter.grad
        for group in optimizer.param_groups
        for parameter in group["params"]
        if parameter.grad is not None
    ]
    return float(torch.nn.utils.get_total_norm(gradients)) / scale


def read_metrics(run: str | Path) -> list[dict[str, Any]]:
    """Read the lines of a run's `metrics.jsonl`.

    Of several lines with the same split and step the last is used. Null
    becomes NaN. Partly written lines are skipped. DataError if the file is
    missing or has no valid line.
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
        # Later lines replace earlier ones and keep their own place.
        found.pop(key, None)
        found[key] = {
            name: math.nan if value is None else value
            for name, value in line.items()
        }
    if not found:
        raise DataError(f"{path}: holds no line of a training's log")
    return list(found.values())


def _parse(text: str) -> dict[str, Any] | None:
    """A line of the log; None if it is partly written."""
    try:
        line = json.loads(text)
    except ValueError:
        return None
    return line if isinstance(line, dict) and line.keys() >= set(KEYS) else None


def _keep_lines(path: Path, is_kept: Callable[[dict[str, Any]], bool]) -> None:
    """Filter the lines of `metrics.jsonl`."""
    if path.is_file():
        _keep_text(
            path,
            lambda text: (line := _parse(text)) is not None and is_kept(line),
        )


def _keep_text(path: Path, is_kept: Callable[[str], bool]) -> None:
    """Filter the lines of a file."""
    text = path.read_text(encoding="utf-8", errors="replace")
    new = "".join(line + "\n" for line in text.splitlines() if is_kept(line))
    if new != text:
        atomic_write_text(path, new)


def _free_name(path: Path) -> Path:
    """First free name of metrics.1.jsonl, metrics.2.jsonl, ..."""
    number = 1
    while (
        free := path.with_name(f"{path.stem}.{number}{path.suffix}")
    ).exists():
        number += 1
    return free
