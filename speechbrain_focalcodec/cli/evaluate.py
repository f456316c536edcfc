"""The command that measures codecs side by side."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from speechbrain_focalcodec.cli.notes import QUIET
from speechbrain_focalcodec.cli.options import (
    BatchDuration,
    DataRoot,
    Device,
    Workers,
)
from speechbrain_focalcodec.cli.stopping import stopping
from speechbrain_focalcodec.errors import FocalCodecError

if TYPE_CHECKING:
    from speechbrain_focalcodec.metrics.summary import Summary

__all__ = ["evaluate"]


def evaluate(
    data: Annotated[
        Path,
        typer.Argument(
            help="A folder of audio (LibriSpeech, LibriTTS and AN4 are "
            "recognised), a manifest (.json, .jsonl, .csv, .tsv), a Kaldi "
            "folder or wav.scp, or a list of files (.txt)."
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            help="The results' folder: new, or of the same evaluation."
        ),
    ],
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="Once for each codec: a bundled model's name, a local folder "
            "or a hub repository; codec2:1300, opus:6, encodec:1.5 and the "
            "like; original. The bundled model when not given."
        ),
    ] = None,
    metrics: Annotated[
        str,
        typer.Option(
            help="Names with commas between; default and paper are groups."
        ),
    ] = "default",
    voice_conversion: Annotated[
        bool,
        typer.Option(
            "--voice-conversion",
            help="Convert each utterance to another speaker's voice.",
        ),
    ] = False,
    reference: Annotated[
        Path | None,
        typer.Option(
            help="Speech of the target speakers, or of one; DATA's own "
            "speakers by default."
        ),
    ] = None,
    whisper: Annotated[
        Path | None,
        typer.Option(
            help="A local Whisper checkpoint: adds wer to the metrics."
        ),
    ] = None,
    metric_model: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=MODEL for a metric with a model of the hub: a local "
            "folder or another repository."
        ),
    ] = None,
    device: Device = None,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Only the first N utterances, by id."),
    ] = None,
    min_duration: Annotated[
        float,
        typer.Option(
            min=0,
            help="Leave out utterances of fewer seconds. STOI needs about "
            "half a second of speech.",
        ),
    ] = 0.0,
    seed: Annotated[
        int, typer.Option(help="Of the targets' and the intervals' draws.")
    ] = 0,
    batch_duration: BatchDuration = None,
    workers: Workers = None,
    max_failures: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            help="Share of the utterances that may fail with a codec, rounded "
            "up to whole ones, before the run stops.",
        ),
    ] = 0.05,
    retry_failures: Annotated[
        bool,
        typer.Option(
            "--retry-failures",
            help="Measure those batches again in which something failed.",
        ),
    ] = False,
    save_audio: Annotated[
        int,
        typer.Option(
            min=0, help="Keep the audio of the first N utterances, by id."
        ),
    ] = 0,
    data_root: DataRoot = None,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite", help="Remove the evaluation that OUT holds."
        ),
    ] = False,
) -> None:
    """Measure codecs on a corpus, side by side: tables, CSV and pictures.

    The same command resumes an evaluation that was killed. With another
    --model or metric besides, only what is new is measured.
    """
    if not data.exists():
        raise typer.BadParameter(
            f"{data}: no such file or folder", param_hint="DATA"
        )
    from speechbrain_focalcodec.jobs.report import ProgressBar
    from speechbrain_focalcodec.metrics.report import to_markdown

    bar = ProgressBar(quiet=QUIET.get())
    options: dict[str, Any] = {
        "voice_conversion": voice_conversion,
        "reference": reference,
        "data_root": data_root,
        "limit": limit,
        "min_duration": min_duration,
        "seed": seed,
        "batch_duration": batch_duration,
        "workers": workers,
        "max_failures": max_failures,
        "retry_failures": retry_failures,
        "save_audio": save_audio,
        "overwrite": overwrite,
        "report": bar,
    }
    with stopping(
        bar,
        "stopped; run the same command again to go on: what was measured is "
        "kept",
    ):
        try:
            chosen = _Chosen(model, metrics, whisper, metric_model, device)
            summary = _run(data, out, chosen, options)
        except (ValueError, ImportError) as error:
            if isinstance(error, FocalCodecError):
                raise
            raise FocalCodecError(str(error)) from error
    typer.echo(f"{to_markdown(summary)}\nWritten to {out}/")
    if summary.unreadable and not summary.utterances:
        raise typer.Exit(1)


class _Chosen(NamedTuple):
    """Models and metrics, as the options name them."""

    model: list[str] | None
    metrics: str
    whisper: Path | None
    metric_model: list[str] | None
    device: str | None


def _run(
    data: Path, out: Path, chosen: _Chosen, options: dict[str, Any]
) -> "Summary":
    """Load the codecs and metrics asked for, and measure."""
    import torch

    from speechbrain_focalcodec.corpus.run import (
        default_batch,
        default_workers,
    )
    from speechbrain_focalcodec.metrics import harness
    from speechbrain_focalcodec.metrics.registry import (
        MetricOptions,
        make_metrics,
    )
    from speechbrain_focalcodec.metrics.results import SETTINGS_NAME
    from speechbrain_focalcodec.metrics.systems.registry import make_system
    from speechbrain_focalcodec.model_files import DEFAULT_MODEL

    device = chosen.device
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    # A resumed evaluation has its own, on any device.
    is_new = options["overwrite"] or not (out / SETTINGS_NAME).is_file()
    if options["batch_duration"] is None and is_new:
        options["batch_duration"] = default_batch(device)
    if options["workers"] is None:
        options["workers"] = default_workers(device)
    wanted = [
        name.strip() for name in chosen.metrics.split(",") if name.strip()
    ]
    if chosen.whisper is not None and "wer" not in wanted:
        wanted.append("wer")
    metrics = make_metrics(
        wanted,
        MetricOptions(
            device=device,
            whisper=chosen.whisper,
            sources=dict(map(_pair, chosen.metric_model or [])),
        ),
    )
    systems = [
        make_system(spec, device=device)
        for spec in chosen.model or [DEFAULT_MODEL]
    ]
    summary = harness.evaluate(data, systems, metrics, out, **options)
    there = {*summary.metrics, *(system.name for system in summary.systems)}
    names = [system.name for system in systems]
    names += [metric.name for metric in metrics]
    if left := [name for name in names if name not in there]:
        typer.echo(
            f"left out, not for converted voices: {', '.join(left)}", err=True
        )
    return summary


def _pair(text: str) -> tuple[str, str]:
    name, separator, model = text.partition("=")
    if not (name and separator and model):
        raise typer.BadParameter(
            f"{text}: must be NAME=MODEL", param_hint="--metric-model"
        )
    return name, model
