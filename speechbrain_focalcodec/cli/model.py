"""Loads the model that a command's options name."""

from typing import TYPE_CHECKING

import typer

from speechbrain_focalcodec.long_audio.windows import CONTEXT, WINDOW

if TYPE_CHECKING:
    from speechbrain_focalcodec.inference import PretrainedFocalCodec

__all__ = ["load_model"]


def load_model(
    model: str | None,
    device: str | None,
    precision: str | None = None,
    window: float = WINDOW,
    context: float = CONTEXT,
    batch_size: int = 1,
    channel: int | None = None,
    strict: bool = False,
) -> "PretrainedFocalCodec":
    """Load a model; the arguments are those of the shared options.

    Raises
    ------
    typer.BadParameter
        If the device does not exist here, or an option does not fit.
    FocalCodecError
        If the model cannot be loaded.
    """
    import torch

    from speechbrain_focalcodec.acceleration import accelerate
    from speechbrain_focalcodec.inference import PretrainedFocalCodec
    from speechbrain_focalcodec.long_audio.engine import check_windows
    from speechbrain_focalcodec.model_files import DEFAULT_MODEL

    if device is not None:
        try:
            torch.zeros(1, device=device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise typer.BadParameter(
                f"{device}: cannot be used here ({reason}); try cpu",
                param_hint="--device",
            ) from error
    interface = PretrainedFocalCodec.from_pretrained(
        DEFAULT_MODEL if model is None else model,
        run_opts={} if device is None else {"device": device},
    )
    codec = interface.codec
    if batch_size < 1:
        raise typer.BadParameter(
            "must be at least 1", param_hint="--batch-size"
        )
    interface.window, interface.context = window, context
    interface.batch_size = batch_size
    interface.channel, interface.strict = channel, strict
    try:
        accelerate(codec, precision)  # type: ignore[arg-type]
        check_windows(codec, window, context)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    return interface
