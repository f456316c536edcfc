"""The command ``convert-voice``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from speechbrain_focalcodec.cli.batch import plan, run
from speechbrain_focalcodec.cli.options import (
    BatchSize,
    Channel,
    Context,
    Device,
    Input,
    Model,
    Neighbors,
    Output,
    Overwrite,
    Precision,
    Strict,
    Window,
)
from speechbrain_focalcodec.errors import VoiceError
from speechbrain_focalcodec.long_audio.windows import CONTEXT, WINDOW

if TYPE_CHECKING:
    from speechbrain_focalcodec.inference import PretrainedFocalCodec
    from speechbrain_focalcodec.voice.reference import VoiceReference

__all__ = ["convert_voice", "open_reference"]


def convert_voice(
    input: Input,
    output: Output,
    reference: Annotated[
        Path,
        typer.Option(
            help="Speech of the target speaker: a folder, an audio file, or a "
            "prepared reference (.safetensors)."
        ),
    ],
    save_reference: Annotated[
        Path | None,
        typer.Option(
            help="Where to write the prepared reference (.safetensors), to "
            "give it to --reference later."
        ),
    ] = None,
    continuous: Annotated[
        bool,
        typer.Option(
            "--continuous",
            help="Prepare the reference from the encoder's features, not "
            "from quantized ones.",
        ),
    ] = False,
    k: Neighbors = 4,
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
    """Convert the speech of audio files to another speaker's voice.

    A minute or more of clean speech makes a good reference.
    """
    from speechbrain_focalcodec.audio.files import AUDIO_SUFFIXES, WRITE_FORMATS
    from speechbrain_focalcodec.cli.model import load_model
    from speechbrain_focalcodec.voice.file import check_name

    jobs = plan(input, output, AUDIO_SUFFIXES, tuple(WRITE_FORMATS), overwrite)
    if save_reference is not None:
        check_name(save_reference)
        if save_reference.exists() and not overwrite:
            raise VoiceError(
                f"{save_reference}: exists; give --overwrite to replace it"
            )
    interface = load_model(
        model, device, precision, window, context, batch_size, strict=strict
    )
    voice = open_reference(interface, reference, continuous)
    interface.channel = channel  # of the input, not of the reference
    voice.converter(interface.codec, k)  # raises if it does not fit
    if save_reference is not None:
        voice.save(save_reference)
    run(
        jobs,
        lambda source, target: interface.convert_voice_file(
            source, voice, target, k=k
        ),
        "convert-voice",
    )


def open_reference(
    interface: "PretrainedFocalCodec", path: Path, continuous: bool = False
) -> "VoiceReference":
    """Load a prepared reference (.safetensors), or prepare one from audio.

    A prepared one may be of another model. Raises FocalCodecError if it cannot
    be read; the message names the file.
    """
    from speechbrain_focalcodec.voice.file import SUFFIX
    from speechbrain_focalcodec.voice.reference import VoiceReference

    if path.suffix.lower() == SUFFIX and not path.is_dir():
        return VoiceReference.load(path)
    return interface.prepare_reference(path, continuous=continuous)
