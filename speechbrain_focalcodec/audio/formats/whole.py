"""Whether an audio file is whole, by its format."""

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
    """A file that is whole, as far as one can tell.

    Arguments
    ---------
    file : BinaryIO
        What libsndfile is to read: the file, or a view of it whose header
        says what the file holds.
    num_samples : int, optional
        Number of samples of a channel, where libsndfile does not know.
    doubt : str, optional
        Why it may still be cut short.
    """

    file: BinaryIO
    num_samples: int | None = None
    doubt: str | None = None


def check_whole(file: BinaryIO, size: int, suffix: str = "") -> Whole:
    """Refuse a file that is cut short, or longer than its header says.

    Other formats than WAV, RF64, W64, CAF, AIFF, 8SVX, AU, NIST SPHERE, FLAC,
    Ogg and MP3 are not checked.

    Arguments
    ---------
    file : BinaryIO
        The file; it must stay open.
    size : int
        Its size.
    suffix : str
        That of its name; decides what begins like no format.

    Returns
    -------
    Whole
        What to read.

    Raises
    ------
    AudioError
        If it is not whole.

    Example
    -------
    >>> with open("speechbrain_focalcodec/assets/demo.flac", "rb") as file:
    ...     check_whole(file, 10000)
    Traceback (most recent call last):
    ...
    speechbrain_focalcodec.errors.AudioError: is cut short (its last frame...
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
