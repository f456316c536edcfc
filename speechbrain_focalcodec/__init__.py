"""FocalCodec for SpeechBrain: speech as low-bitrate tokens, and back."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from speechbrain_focalcodec.codec import FocalCodec
    from speechbrain_focalcodec.inference import PretrainedFocalCodec
    from speechbrain_focalcodec.onnx.runtime import OnnxFocalCodec

__all__ = [
    "FocalCodec",
    "OnnxFocalCodec",
    "PretrainedFocalCodec",
    "__version__",
]

__version__ = "0.1.0"

# Modules that version 0.1.0 documented under other names are found there.
__path__.append(f"{__path__[0]}/compat/earlier")


def __getattr__(name: str) -> Any:
    """Import torch with the first use of a model: `--help` needs none."""
    if name == "FocalCodec":
        from speechbrain_focalcodec.codec import FocalCodec

        return FocalCodec
    if name == "PretrainedFocalCodec":
        from speechbrain_focalcodec.inference import PretrainedFocalCodec

        return PretrainedFocalCodec
    if name == "OnnxFocalCodec":
        from speechbrain_focalcodec.onnx.runtime import OnnxFocalCodec

        return OnnxFocalCodec
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
