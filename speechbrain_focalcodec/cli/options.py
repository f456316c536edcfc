"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "AsJson",
    "BatchDuration",
    "BatchSize",
    "CausalModel",
    "Channel",
    "Context",
    "DataRoot",
    "Device",
    "Input",
    "Model",
    "Neighbors",
    "Output",
    "Overwrite",
    "Precision",
    "Strict",
    "Window",
    "Workers",
]

Input = Annotated[
    Path,
    typer.Argument(help="A file or a folder, or - for standard input."),
]
Output = Annotated[
    Path,
    typer.Argument(
        help="A file, a folder that keeps the input's tree, or - for "
        "standard output."
    ),
]
Channel = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="Channel of the audio to read, from 0; the mean of all by "
        "default.",
    ),
]
Strict = Annotated[
    bool,
    typer.Option(
        "--strict",
        help="Raise an error in place of a warning: for channels that "
        "cancel, samples far outside [-1, 1], near silence.",
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        help="A bundled model's name, a local folder or a hub repository; "
        "the bundled model by default."
    ),
]
CausalModel = Annotated[
    str | None,
    typer.Option(
        help="A causal model: a bundled one's name, a local folder or a hub "
        "repository; the bundled causal model by default."
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        help="Such as cpu or cuda:0; a GPU when there is one by default."
    ),
]
Precision = Annotated[
    str | None,
    typer.Option(
        help="bf16 or int8: faster, and nearly the same tokens; exact by "
        "default."
    ),
]
Window = Annotated[
    float,
    typer.Option(
        help="Longer audio is processed in windows of this many seconds."
    ),
]
Context = Annotated[
    float,
    typer.Option(help="Seconds of context on each side of a window."),
]
BatchSize = Annotated[
    int, typer.Option(help="Windows per batch; more are faster on a GPU.")
]
BatchDuration = Annotated[
    float | None,
    typer.Option(
        help="Seconds of audio in a batch; 20 on a CPU and 240 on a GPU by "
        "default."
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="Processes that read audio ahead; 1 on a CPU and up to 8 on a "
        "GPU by default, 0 for a thread.",
    ),
]
DataRoot = Annotated[
    Path | None,
    typer.Option(help="Value of {data_root} in a manifest."),
]
Neighbors = Annotated[
    int,
    typer.Option(
        min=1, help="Frames of the reference to average for each frame."
    ),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print JSON instead of lines.")
]
Overwrite = Annotated[
    bool,
    typer.Option(
        help="Replace outputs that exist. Otherwise a folder run skips them, "
        "and a single one is an error."
    ),
]
