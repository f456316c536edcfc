"""The command ``export-onnx``, which writes a model as ONNX."""

from pathlib import Path
from typing import Annotated

import typer

from speechbrain_focalcodec.cli.notes import note
from speechbrain_focalcodec.cli.options import Model

__all__ = ["export_onnx"]


def export_onnx(
    out: Annotated[Path, typer.Argument(help="The folder to write.")],
    model: Model = None,
    int8: Annotated[
        bool,
        typer.Option(
            "--int8",
            help="Store linear layers' weights as 8-bit integers: smaller "
            "and faster, and somewhat different tokens.",
        ),
    ] = False,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Replace an export in the folder."),
    ] = False,
) -> None:
    """Write a model as ONNX, to run it without PyTorch.

    The folder then holds encoder.onnx, decoder.onnx and onnx.json; of a causal
    model also encoder_step.onnx and decoder_step.onnx, which code a chunk of a
    stream. Load it with speechbrain_focalcodec.OnnxFocalCodec.
    """
    from speechbrain_focalcodec.cli.model import load_model
    from speechbrain_focalcodec.errors import FocalCodecError
    from speechbrain_focalcodec.onnx import export as onnx_export
    from speechbrain_focalcodec.onnx.files import FACTS_FILE

    if (out / FACTS_FILE).exists() and not overwrite:
        raise FocalCodecError(
            f"{out}: holds an export; give --overwrite to replace it"
        )
    codec = load_model(model, "cpu").codec
    try:
        facts = onnx_export.export_onnx(
            codec,
            out,
            int8,
            announce=lambda name: note(f"exporting {name} ...", err=True),
        )
    except (ImportError, ValueError) as error:
        raise FocalCodecError(str(error)) from error
    size = sum((out / name).stat().st_size for name in facts.files)
    note(f"{out}: {facts.name}, {facts.weights} weights, {size / 1e6:.1f} MB")
