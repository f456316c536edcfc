"""The command ``export``, which joins trained stages into a model."""

from pathlib import Path
from typing import Annotated

import typer

from speechbrain_focalcodec.cli.notes import note

__all__ = ["export"]


def export(
    out: Annotated[Path, typer.Argument(help="The model folder to write.")],
    runs: Annotated[
        list[str],
        typer.Argument(
            help="Output folders of training stages, and models; later "
            "ones replace parts of earlier ones."
        ),
    ],
    encoder: Annotated[
        str | None,
        typer.Option(
            help="Source of the WavLM encoder's weights if no run has them: "
            "the encoder_source of the stages."
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a model in the folder.")
    ] = False,
    half: Annotated[
        bool,
        typer.Option("--half", help="Store weights as float16: half the size."),
    ] = False,
    discriminator: Annotated[
        bool,
        typer.Option(
            "--discriminator",
            help="Write discriminator.safetensors too, for fine-tuning.",
        ),
    ] = False,
    decoder_share: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Average the weights of the last two decoders, with this "
            "share of the last. Between a decoder and its adversarially "
            "trained version, it trades intelligibility for sound quality.",
        ),
    ] = None,
) -> None:
    """Join the best checkpoints of the stages into a model folder.

    The folder can be loaded by its path. It holds config.json and
    model.safetensors, and the hyperparams.yaml of SpeechBrain's from_hparams.
    """
    import torch

    from speechbrain_focalcodec.errors import FocalCodecError
    from speechbrain_focalcodec.model_files import CONFIG_FILE
    from speechbrain_focalcodec.training.export import export_runs

    if (out / CONFIG_FILE).exists() and not overwrite:
        raise FocalCodecError(
            f"{out}: holds a model; give --overwrite to replace it"
        )
    codec = export_runs(
        out,
        runs,
        encoder,
        torch.float16 if half else torch.float32,
        discriminator,
        decoder_share,
    )
    parameters = sum(p.numel() for p in codec.parameters())
    note(
        f"{out}: {parameters / 1e6:.1f} M parameters, "
        f"{codec.bitrate / 1000:.2f} kbps"
    )
