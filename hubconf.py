"""Entry point of `torch.hub`, as the published repository has."""

from typing import Any

from speechbrain_focalcodec.compat import FocalCodec

dependencies = [
    "huggingface_hub",
    "pydantic",
    "safetensors",
    "speechbrain",
    "torch",
    "torchaudio",
]


def focalcodec(
    config: str = "lucadellalib/focalcodec_50hz",
    pretrained: bool = True,
    overrides: dict[str, Any] | None = None,
    **kwargs: Any,
) -> FocalCodec:
    """Load a model.

    Arguments
    ---------
    config : str
        A JSON file, a folder, a bundled model or a repository on the hub.
    pretrained : bool
        Whether to load its weights, too; they are random otherwise.
    overrides : dict, optional
        Options to change, such as ``{"encoder_config.dropout": 0.1}``.
    **kwargs : dict
        See :meth:`speechbrain_focalcodec.compat.FocalCodec.from_pretrained`.

    Returns
    -------
    FocalCodec
        With the interface of the published package, in eval mode.
    """
    return FocalCodec.from_config(config, pretrained, overrides, **kwargs)
