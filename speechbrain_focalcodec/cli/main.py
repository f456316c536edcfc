"""The registry of the commands of ``focalcodec``.

Commands import torch and SpeechBrain when they run: ``--help`` is quick.
"""

import json
import logging
from pathlib import Path
from typing import Annotated, Any

import typer

from speechbrain_focalcodec import __version__
from speechbrain_focalcodec.cli.batch import OneLineErrors, plan, run
from speechbrain_focalcodec.cli.demo import demo
from speechbrain_focalcodec.cli.evaluate import evaluate
from speechbrain_focalcodec.cli.export import export
from speechbrain_focalcodec.cli.model import load_model
from speechbrain_focalcodec.cli.onnx import export_onnx
from speechbrain_focalcodec.cli.options import (
    AsJson,
    BatchSize,
    Channel,
    Context,
    Device,
    Input,
    Model,
    Output,
    Overwrite,
    Precision,
    Strict,
    Window,
)
from speechbrain_focalcodec.cli.piping import reading
from speechbrain_focalcodec.cli.stream import stream
from speechbrain_focalcodec.cli.tokenize import tokenize
from speechbrain_focalcodec.cli.tokens import decode, encode, token_facts
from speechbrain_focalcodec.cli.training import plot_training
from speechbrain_focalcodec.cli.voice import convert_voice
from speechbrain_focalcodec.long_audio.windows import CONTEXT, WINDOW

__all__ = ["app", "decode", "encode", "info", "resynthesize"]

app = typer.Typer(
    name="focalcodec",
    cls=OneLineErrors,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"focalcodec {__version__}")
        raise typer.Exit()


@app.callback()
def common(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_print_version,
            is_eager=True,
            help="Print the version and exit.",
        ),
    ] = False,
    quiet: Annotated[
        bool,
        typer.Option(
            "--quiet", "-q", help="Print results and errors, no progress."
        ),
    ] = False,
    verbose: Annotated[
        bool,
        typer.Option(
            "--verbose",
            "-v",
            help="Print log messages, and where errors arose.",
        ),
    ] = False,
) -> None:
    """Turn speech into FocalCodec tokens, and tokens into speech."""
    if verbose:
        logging.basicConfig(level=logging.INFO)


app.command()(encode)
app.command()(decode)


@app.command()
def resynthesize(
    input: Input,
    output: Output,
    model: Model = None,
    device: Device = None,
    precision: Precision = None,
    window: Window = WINDOW,
    context: Context = CONTEXT,
    batch_size: BatchSize = 1,
    channel: Channel = None,
    strict: Strict = False,
    overwrite: Overwrite = False,
) -> None:
    """Encode audio files and decode them again."""
    from speechbrain_focalcodec.audio.files import AUDIO_SUFFIXES, WRITE_FORMATS

    jobs = plan(input, output, AUDIO_SUFFIXES, tuple(WRITE_FORMATS), overwrite)
    interface = load_model(
        *(model, device, precision, window, context, batch_size),
        *(channel, strict),
    )
    run(jobs, interface.resynthesize_file, "resynthesize")


@app.command()
def info(
    file: Annotated[
        Path | None,
        typer.Argument(
            help="A token file to describe in place of a model, or - for "
            "standard input."
        ),
    ] = None,
    model: Model = None,
    as_json: AsJson = False,
) -> None:
    """Describe a model or a token file."""
    if file is None:
        facts = _model_facts(model)
    else:
        with reading(file) as path:
            facts = token_facts(path)
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    units = {
        **dict.fromkeys(
            ("sample_rate", "sample_rate_input", "sample_rate_output"), " Hz"
        ),
        "token_rate": " Hz",
        "bitrate": " bit/s",
        "latency": " ms",
        "duration": " s",
        "size": " bytes",
    }
    for name, value in facts.items():
        text = f"{value}{units.get(name, '')}"
        if value is None:
            text = "none (not causal)" if name == "latency" else "not stored"
        typer.echo(f"{name:<20}{text}")


def _model_facts(model: str | None) -> dict[str, Any]:
    codec = load_model(model, "cpu").codec
    return {
        "model": codec.name,
        "sample_rate_input": codec.sample_rate_input,
        "sample_rate_output": codec.sample_rate_output,
        "token_rate": codec.token_rate,
        "bitrate": codec.bitrate,
        "codebook_size": codec.codebook_size,
        "causal": codec.causal,
        "latency": codec.latency,
        "parameters": sum(p.numel() for p in codec.parameters()),
        "fingerprint": codec.fingerprint,
    }


app.command()(demo)
app.command()(evaluate)
app.command()(export)
app.command()(convert_voice)
app.command()(stream)
app.command()(export_onnx)
app.command()(tokenize)
app.command()(plot_training)
