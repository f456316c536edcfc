"""The command ``stream``: live audio or a file, chunk by chunk."""

import json
import math
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from speechbrain_focalcodec.cli.notes import note
from speechbrain_focalcodec.cli.options import (
    AsJson,
    CausalModel,
    Channel,
    Device,
    Neighbors,
    Precision,
    Strict,
)
from speechbrain_focalcodec.cli.piping import PIPE, reading, writing
from speechbrain_focalcodec.cli.voice import open_reference
from speechbrain_focalcodec.errors import AudioError

__all__ = ["stream"]

MICROPHONE = "microphone"


def stream(
    input: Annotated[
        str,
        typer.Argument(
            help="An audio file, - for standard input, or the word "
            "microphone: live audio, until Ctrl-C."
        ),
    ],
    model: CausalModel = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "--output",
            help="Audio file to write, or - for standard output; the report "
            "goes to standard error then.",
        ),
    ] = None,
    reference_voice: Annotated[
        Path | None,
        typer.Option(
            help="Speech of the speaker whose voice is to be heard: a "
            "folder, an audio file, or a prepared reference (.safetensors)."
        ),
    ] = None,
    k: Neighbors = 4,
    duration: Annotated[
        float | None, typer.Option(help="End after so many seconds.")
    ] = None,
    realtime: Annotated[
        bool,
        typer.Option(
            "--realtime/--no-realtime",
            help="Read a file at the pace of a microphone, in place of as "
            "fast as it goes.",
        ),
    ] = False,
    play: Annotated[
        bool,
        typer.Option(
            "--play", help="Play the output; a file is then read in real time."
        ),
    ] = False,
    device: Device = None,
    precision: Precision = None,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="Threads of the CPU; torch's choice."),
    ] = None,
    as_json: AsJson = False,
    channel: Channel = None,
    strict: Strict = False,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Replace an output that exists."),
    ] = False,
) -> None:
    """Resynthesise live audio chunk by chunk, and report the latency.

    Needs a causal model. The microphone and --play need the extra "live".
    """
    source = None if input == MICROPHONE else Path(input)
    _check_paths(source, output, overwrite)
    if duration is not None and not (duration > 0 and math.isfinite(duration)):
        raise typer.BadParameter(
            "must be a positive number of seconds", param_hint="--duration"
        )
    import torch

    from speechbrain_focalcodec.audio.devices import import_sounddevice
    from speechbrain_focalcodec.cli.model import load_model
    from speechbrain_focalcodec.model_files import DEFAULT_CAUSAL_MODEL
    from speechbrain_focalcodec.streaming.live import stream_audio
    from speechbrain_focalcodec.streaming.sessions import (
        StreamingResynthesizer,
        StreamingVoiceConverter,
    )

    if source is None or play:
        import_sounddevice()  # or an error, before a model is loaded
    if threads is not None:
        torch.set_num_threads(threads)
    model = DEFAULT_CAUSAL_MODEL if model is None else model
    interface = load_model(model, device, precision)
    session: StreamingResynthesizer
    if reference_voice is None:
        session = StreamingResynthesizer(interface.codec)
    else:
        session = StreamingVoiceConverter(
            interface.codec, open_reference(interface, reference_voice), k
        )
    with ExitStack() as stack:
        path, target = source, output
        if path is not None:
            path = stack.enter_context(reading(path))
        if target is not None:
            target = stack.enter_context(writing(target, ".wav"))
        report = stream_audio(
            session,
            path,
            target,
            duration=duration,
            realtime=realtime,
            play=play,
            announce=lambda line: note(line, err=True),
            channel=channel,
            strict=strict,
        )
    facts = {
        "model": interface.codec.name,
        "input": input,
        "live": source is None or realtime or play,
        "device": str(interface.device),
        "threads": torch.get_num_threads(),
        "precision": precision or "float32",
    }
    rows = {
        "Model": "{model}, {device}, threads: {threads}, {precision}".format(
            **facts
        ),
        **report.rows(),
    }
    if output not in (None, PIPE):
        rows["Written to"] = str(output)
    if as_json:
        text = json.dumps(facts | report.to_dict(), indent=2)
    else:
        text = "\n".join(f"{name:<12}{value}" for name, value in rows.items())
    typer.echo(text, err=output == PIPE)


def _check_paths(
    source: Path | None,
    output: Path | None,
    overwrite: bool,
) -> None:
    """Check that the input can be read and the output written."""
    from speechbrain_focalcodec.audio.stream import write_format

    if source == PIPE:
        source = None
    if source is not None and not source.is_file():
        kind = "is a pipe or a device" if source.exists() else "no such file"
        kind = "is a folder" if source.is_dir() else kind
        raise AudioError(
            f"{source}: {kind}; give an audio file or {MICROPHONE}"
        )
    if output is None or output == PIPE:
        return
    write_format(output)
    if not output.exists():
        return
    if output.is_dir():
        raise AudioError(f"{output}: is a folder; give a file")
    if source is not None and source.samefile(output):
        raise AudioError(
            f"{source}: would be overwritten by its own output; give another "
            "output"
        )
    if not overwrite:
        raise AudioError(f"{output}: exists; give --overwrite to replace it")
