"""Voice conversion: references of speakers, their files, nearest frames."""

from speechbrain_focalcodec.voice.reference import VoiceReference

__all__ = ["VoiceReference"]
