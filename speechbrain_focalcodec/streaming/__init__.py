"""Live audio: sessions that encode, decode and convert chunk by chunk."""

from speechbrain_focalcodec.streaming.sessions import (
    Stream,
    StreamingDecoder,
    StreamingEncoder,
    StreamingResynthesizer,
    StreamingVoiceConverter,
)

__all__ = [
    "Stream",
    "StreamingDecoder",
    "StreamingEncoder",
    "StreamingResynthesizer",
    "StreamingVoiceConverter",
]
