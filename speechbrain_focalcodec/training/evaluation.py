"""Evaluation of the best checkpoint at the end of a training.

The harness of ``focalcodec evaluate`` evaluates the codec in memory. Missing
libraries and data are found before the training starts.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
)
from speechbrain.utils.logger import get_logger

from speechbrain_focalcodec.errors import ConfigError, DataError
from speechbrain_focalcodec.jobs.report import ProgressBar, Report
from speechbrain_focalcodec.metrics.base import Metric
from speechbrain_focalcodec.metrics.harness import evaluate_codec, speakers_of
from speechbrain_focalcodec.metrics.plan import (
    Options,
    OtherEvaluationError,
    draw_targets,
    list_items,
)
from speechbrain_focalcodec.metrics.registry import MetricOptions, make_metrics
from speechbrain_focalcodec.metrics.summary import Summary
from speechbrain_focalcodec.metrics.worker import MAX_FAILURES
from speechbrain_focalcodec.training.codec_brain import CodecBrain
from speechbrain_focalcodec.training.distributed import run_long_on_main
from speechbrain_focalcodec.training.next_steps import missing_parts

__all__ = ["EvaluationOptions", "FinalEvaluation"]

FOLDER_NAME = "evaluation"
# A debug run keeps the evaluation of the training.
DEBUG_FOLDER_NAME = "evaluation_debug"
_MAKING_METRICS = {"metrics", "whisper", "metric_models"}

logger = get_logger(__name__)


class EvaluationOptions(BaseModel):
    """Options of the hyperparameter ``evaluation``.

    These are the options of ``focalcodec evaluate``. `metrics` is a list of
    metrics and groups; `metric_models` maps metrics to local folders or hub
    repositories.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    metrics: tuple[str, ...] = ("default",)
    whisper: str | Path | None = None
    metric_models: dict[str, str | Path] = {}
    voice_conversion: bool = False
    reference: str | Path | None = None
    limit: Annotated[int, Field(ge=1)] | None = None
    min_duration: Annotated[float, Field(ge=0)] = 0.0
    seed: int = 0
    batch_duration: Annotated[float, Field(gt=0)] | None = None
    workers: Annotated[int, Field(ge=0)] = 0
    max_failures: Annotated[float, Field(ge=0, le=1)] = MAX_FAILURES
    retry_failures: bool = False
    save_audio: Annotated[int, Field(ge=0)] = 0
    overwrite: bool = False

    @field_validator("metrics", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        """Split names that are separated by commas."""
        if not isinstance(value, str):
            return value
        return [name.strip() for name in value.split(",") if name.strip()]

    @classmethod
    def parse(cls, given: Mapping[str, Any]) -> "EvaluationOptions":
        """Check the hyperparameter; ConfigError for invalid keys or values."""
        try:
            options = cls.model_validate(given)
        except ValidationError as error:
            problems = "; ".join(
                ": ".join([*map(str, it["loc"]), it["msg"]])
                for it in error.errors()
            )
            raise ConfigError(
                f"evaluation: {problems} (known: {', '.join(cls.model_fields)})"
            ) from None
        if options.reference is not None and not options.voice_conversion:
            raise ConfigError("evaluation: reference needs voice_conversion")
        return options

    def make_metrics(self, device: str) -> list[Metric]:
        """Make the metrics, with their models on a device."""
        names = list(self.metrics)
        if self.whisper is not None:
            names.append("wer")
        return make_metrics(
            names, MetricOptions(device, self.whisper, self.metric_models)
        )


class FinalEvaluation:
    """Evaluates the codec of a Brain on the main process.

    Writes ``evaluation/`` in the output folder and a line in the logs. An
    existing evaluation of the same model, data and options is kept, another one
    is replaced. A debug run evaluates a few utterances in
    ``evaluation_debug/``. ConfigError if options are invalid or the codec lacks
    a trained part.
    """

    def __init__(
        self,
        brain: CodecBrain,
        options: Mapping[str, Any],
        manifest: str | Path,
        data_folder: str | Path,
    ):
        self.brain = brain
        self.options = EvaluationOptions.parse(options)
        self.manifest, self.data_folder = Path(manifest), Path(data_folder)
        name = DEBUG_FOLDER_NAME if brain.debug else FOLDER_NAME
        self.out = Path(brain.hparams.output_folder) / name
        missing = missing_parts(brain)
        if missing:
            names = [source.name for source in brain.sources]
            raise ConfigError(
                f"evaluation: after {type(brain).__name__} the codec cannot "
                f"resynthesise: no trained {' and no '.join(missing)} "
                f"(start_from has {', '.join(names) or 'nothing'}); add the "
                "output folder of the stage that trains it, or a model, to "
                "start_from, or set evaluation to null"
            )

    def check(self) -> None:
        """Raise before the training if the evaluation could not run."""
        run_long_on_main(self._check)

    def run(self) -> None:
        """Evaluate and log the figures; DataError if too many items fail."""
        run_long_on_main(self._run)

    def _check(self) -> None:
        options = self.options
        # Making the models draws random numbers; training must not notice.
        with torch.random.fork_rng(devices=[]):
            options.make_metrics("cpu")
        _, items = list_items(self.manifest, self.data_folder)
        if options.voice_conversion:
            reference = options.reference
            pool = items if reference is None else speakers_of(reference)
            shown = None if reference is None else str(reference)
            draw_targets(items[: self._limit], pool, Options(reference=shown))

    def _run(self) -> None:
        brain, codec = self.brain, self.brain.codec.eval()
        metrics = self.options.make_metrics(str(brain.device))
        report = Report() if brain.noprogressbar else ProgressBar()
        chosen = self.options.model_dump(exclude=_MAKING_METRICS)
        chosen |= {"limit": self._limit, "report": report}
        chosen["data_root"] = self.data_folder

        def evaluate(**more: Any) -> Summary:
            return evaluate_codec(
                codec, self.manifest, metrics, self.out, **(chosen | more)
            )

        try:
            try:
                summary = evaluate()
            except OtherEvaluationError as error:
                logger.info(f"{error}: starting again")
                summary = evaluate(overwrite=True)
        except DataError as error:
            raise DataError(
                f"evaluation: {error}. (Such options are keys of `evaluation` "
                "here; the same command resumes the evaluation.)"
            ) from error
        self._log(summary)

    def _log(self, summary: Summary) -> None:
        brain, [system] = self.brain, summary.systems
        figures = {key: it.value for key, it in system.figures.items()}
        figures |= {
            "bitrate": system.bitrate,
            "real_time_factor": system.real_time_factor,
            **system.codes,
        }
        known = {key: x for key, x in figures.items() if x is not None}
        epoch = brain.hparams.epoch_counter.current
        brain.run_log.write("evaluation", brain.optimizer_step, epoch, known)
        brain.run_log.remove_text(f"Epoch evaluated: {epoch},")
        brain.hparams.train_logger.log_stats(
            {"Epoch evaluated": epoch, "utterances": system.utterances},
            test_stats=known,
        )

    @property
    def _limit(self) -> int | None:
        """Maximum number of utterances; in a debug run at most its batches."""
        limit = self.options.limit
        if not self.brain.debug:
            return limit
        most = self.brain.debug_batches
        return most if limit is None else min(limit, most)
