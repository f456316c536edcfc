"""Live audio: sessions that encode, decode and convert chunk by chunk."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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


def __getattr__(name: str) -> Any:
    """Import torch with the first session: ONNX sessions need none."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from speechbrain_focalcodec.streaming import sessions

    return getattr(sessions, name)
