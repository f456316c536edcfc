"""FocalCodec for SpeechBrain: speech as low-bitrate tokens, and back."""

from speechbrain_focalcodec.codec import FocalCodec

__all__ = ["FocalCodec", "__version__"]

__version__ = "0.1.0"
