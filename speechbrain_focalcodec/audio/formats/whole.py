"""Checks whether an audio file is complete, by its format."""

from typing import BinaryIO, NamedTuple

from speechbrain_focalcodec.audio.formats.chunks import KINDS, check_chunks
from speechbrain_focalcodec.audio.formats.flac import check_flac
from speechbrain_focalcodec.audio.formats.mpeg import check_mpeg, is_mpeg
from speechbrain_focalcodec.audio.formats.ogg import check_ogg
from speechbrain_focalcodec.audio.formats.plain import check_au, check_nist
from speechbrain_focalcodec.audio.formats.tags import read_at, tag_length

__all__ = ["Whole", "check_whole"]

_MPEG_SUFFIXES = (".mp3", ".mp2", ".mp1", ".mpga")


class Whole(NamedTuple):
    """A complete audio file, as far as its format shows.

    Arguments
    ---------
    file : BinaryIO
        Input of libsndfile: the file, or a view of it with a corrected header.
    num_samples : int, optional
        Samples per channel, if libsndfile does not know them.
    doubt : str, optional
        Why it may still be cut short.
    """

    file: BinaryIO
    num_samples: int | None = None
    doubt: str | None = None


def check_whole(file: BinaryIO, size: int, suffix: str = "") -> Whole:
    """Raise AudioError if a file is cut short, or longer than its header says.

    Formats other than WAV, RF64, W64, CAF, AIFF, 8SVX, AU, NIST SPHERE, FLAC,
    Ogg and MP3 are not checked. `suffix` is that of the file's name; it decides
    if the first bytes match no format. The file must stay open.
    """
    start = 0
    while length := tag_length(read_at(file, start, 32)):
        start += length
    head = read_at(file, start, 8)
    if head[:4] == b"fLaC":
        return Whole(check_flac(file, start, size))
    if head[:4] in KINDS:
        return Whole(check_chunks(file, size))
    if head[:4] in (b".snd", b"dns."):
        return Whole(check_au(file, size))
    if head[:7] == b"NIST_1A":
        return Whole(check_nist(file, size))
    if head[:4] == b"OggS":
        return Whole(file, doubt=check_ogg(file, size))
    if is_mpeg(head) or start or suffix.lower() in _MPEG_SUFFIXES:
        return Whole(*check_mpeg(file, start, size))
    return Whole(file)
