"""The command that streams a file or a microphone and reports the latency."""

import json
import math
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from speechbrain_focalcodec.cli.notes import note
from speechbrain_focalcodec.cli.options import (
    CausalModel,
    Channel,
    Device,
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
    k: Annotated[
        int,
        typer.Option(
            min=1, help="Frames of the voice to average for each frame."
        ),
    ] = 4,
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
            "--play", help="Play what comes out; a file then in real time."
        ),
    ] = False,
    device: Device = None,
    precision: Precision = None,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="Threads of the CPU; torch's choice."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON instead of lines.")
    ] = False,
    channel: Channel = None,
    strict: Strict = False,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Replace an output that exists."),
    ] = False,
) -> None:
    """Resynthesise live audio chunk by chunk, and report the latency.

    Needs a causal model. The microphone and --play need the extra "live".
    \f

    Arguments
    ---------
    input : str
        An audio file, ``-``, or ``microphone``.
    model : str, optional
        A bundled model's name, a local folder or a hub repository; by
        default the bundled causal model.
    output : Path, optional
        Audio file to write, or ``-``.
    reference_voice : Path, optional
        Speech of the speaker whose voice is to be heard, or a prepared
        reference.
    k : int
        Frames of the voice to average for each frame.
    duration : float, optional
        Where to end (s).
    realtime : bool
        Whether to read a file at the pace of a microphone.
    play : bool
        Whether to play what comes out.
    device, precision : str, optional
        Where the model runs; ``bf16`` or ``int8``.
    threads : int, optional
        Threads of the CPU.
    as_json : bool
        Whether to print the report as JSON.
    channel : int, optional
        The file's channel to read; the mean of all by default.
    strict : bool
        Whether to raise an error in place of a warning.
    overwrite : bool
        Whether to replace an output that exists.

    Raises
    ------
    FocalCodecError
        When the model does not stream, the audio cannot be read or written,
        or there is no microphone.

    Example
    -------
    >>> clip = "speechbrain_focalcodec/assets/demo.flac"
    >>> stream(clip, "tests/parity/causal_50hz", duration=1.0, device="cpu")
    Model       causal_50hz, cpu, ...
    """
    source = None if input == MICROPHONE else Path(input)
    _check_paths(source, output, overwrite)
    if duration is not None and not (duration > 0 and math.isfinite(duration)):
        raise typer.BadParameter(
            "must be a positive number of seconds", param_hint="--duration"
        )
    # Imported here: `focalcodec --help` must not wait for torch, and main
    # imports this module.
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
    """Refuse what cannot be read or written, before anything is done."""
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
