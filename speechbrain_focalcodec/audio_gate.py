"""The gate: the checks that every audio file and every signal goes through.

soundfile hides damage: half a WAV reads cleanly with a shrunken header, half
an MP3 claims all its frames and returns fewer, and absurd headers pass. Every
file that a user gives is opened by :class:`CheckedFile`, which refuses these
by name. (Training reads slices of prepared corpora, see `data/reader.py`.)
"""

import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import soundfile
import torch

from speechbrain_focalcodec.errors import AudioError
from speechbrain_focalcodec.resampling import MAX_SAMPLE_RATE, MIN_SAMPLE_RATE

__all__ = ["CheckedFile", "check_sig"]

# What a file may claim before any of it is decoded.
MAX_CHANNELS = 64
MAX_PEAK = 2.0**16  # float files may exceed 1, but not by this

_DECODE_VALUES = 2**20  # frames x channels decoded in one call
# libsndfile's log names each size of a header that the file does not hold.
_SHRUNKEN = re.compile(
    r"^\s*(RIFF|RIFX|riff|Riff size|FORM|data|SSND|Data Size)"
    r"\s*: (\d+) \(should be (\d+)\)",
    re.MULTILINE,
)
_OGG_PAGE_LIMIT = 27 + 255 + 255 * 255  # bytes
_MP3_TAGS = 4096  # bytes that may follow the audio


class CheckedFile:
    """An audio file, decoded from its beginning and checked on the way.

    Every format of soundfile that has a header is read. The header's claims
    are checked before anything is decoded, and what is decoded is checked
    against them. A file cut short is refused wherever its format lets one
    tell: WAV, AIFF, AU, W64, RF64, CAF (sizes in the header), FLAC (frames),
    Ogg (end-of-stream page), MP3 with a Xing frame (frame count). An MP3 file
    of variable bitrate without one is refused. What only decoding can tell is
    refused by :meth:`read`, at the file's end at the latest.

    A context manager, which closes the file.

    Arguments
    ---------
    path : str or Path
        The file to read.
    max_duration : float
        The longest accepted duration, in seconds.

    Attributes
    ----------
    num_frames : int
        Number of frames, as claimed.
    num_channels : int
        Number of channels.
    sample_rate : int
        Sample rate in Hz.
    position : int
        Number of frames decoded.

    Raises
    ------
    AudioError
        If the file is missing, unreadable, empty, cut short, or claims an
        absurd sample rate, channel count or duration.

    Example
    -------
    >>> path = getfixture("tmp_path") / "tone.wav"
    >>> soundfile.write(path, torch.full((8000, 2), 0.5), 8000)
    >>> with CheckedFile(path, max_duration=60.0) as file:
    ...     file.num_frames, file.num_channels, file.read(3)
    (8000, 2, tensor([0.5000, 0.5000, 0.5000]))
    """

    def __init__(self, path: str | Path, max_duration: float) -> None:
        self.path = path = Path(path)
        if not path.is_file():
            raise AudioError(f"{path}: no such file; check the path")
        if path.stat().st_size == 0:
            raise AudioError(f"{path}: is empty; copy or record it again")
        if path.suffix.lower() == ".raw":
            raise AudioError(
                f"{path}: header-less audio cannot be read; convert it to WAV"
            )
        with ExitStack() as stack, _decoding(path):
            file = stack.enter_context(open(path, "rb"))
            stream = stack.enter_context(
                _SequentialFile(file.fileno(), closefd=False)
            )
            _check_claims(path, stream, max_duration)
            _check_whole(path, stream)
            self._file, self._stream = file, stream
            self._stack = stack.pop_all()
        self.num_frames: int = stream.frames
        self.num_channels: int = stream.channels
        self.sample_rate: int = stream.samplerate
        self.position = 0
        self._error: AudioError | None = None

    def read(self, num_frames: int) -> torch.Tensor:
        """Decode the next frames.

        Arguments
        ---------
        num_frames : int
            How many; at most those that are left.

        Returns
        -------
        torch.Tensor
            The mean of the channels, float32 [num_frames].

        Raises
        ------
        AudioError
            If the file is damaged, cut short or not finite. It is raised
            again by every later call.
        """
        if self._error is not None:
            raise self._error
        try:
            with _decoding(self.path):
                return self._decode(num_frames)
        except AudioError as error:
            self._error = error
            raise

    def _decode(self, num_frames: int) -> torch.Tensor:
        sig = torch.empty(num_frames)
        step = _DECODE_VALUES // self.num_channels
        for part in sig.split(step):
            channels = self._stream.read(
                len(part), dtype="float32", always_2d=True
            )
            self.position += len(channels)
            is_short = len(channels) < len(part)
            if is_short or self.position == self.num_frames:
                self._check_end()
            part[:] = torch.from_numpy(channels.mean(axis=1))
            # One test for both: a comparison with NaN is false.
            if not bool((part.abs() <= MAX_PEAK).all()):
                raise AudioError(
                    f"{self.path}: has NaN, infinite or absurdly large "
                    "samples; export it again with samples in [-1, 1]"
                )
        return sig

    def _check_end(self) -> None:
        """Refuse a file that ended before, or goes on after, what it claims."""
        if self._stream.format == "MP3":
            _check_mp3_was_read(self.path, self._file.fileno())
        if self.position != self.num_frames:
            raise _truncated(
                self.path, f"{self.num_frames} frames", f"{self.position}"
            )

    def close(self) -> None:
        """Close the file; it cannot be read any more."""
        self._stack.close()

    def __enter__(self) -> "CheckedFile":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class _SequentialFile(soundfile.SoundFile):
    """A sound file that is not repositioned.

    soundfile seeks to the end of what it has read after each call, which is
    not exact in MP3 files. It leaves those alone that cannot seek.
    """

    def seekable(self) -> bool:
        return False


@contextmanager
def _decoding(path: Path) -> Iterator[None]:
    """Turn errors of libsndfile and of the disk into ours."""
    try:
        yield
    except (soundfile.SoundFileError, OSError) as error:
        # Not all of a LibsndfileError: it has the descriptor's number.
        reason = getattr(error, "error_string", error)
        raise AudioError(
            f"{path}: cannot be decoded ({reason}); "
            "check that it is an undamaged audio file"
        ) from error


def check_sig(sig: torch.Tensor, name: str = "sig", ndim: int = 2) -> None:
    """Refuse a tensor that is not a waveform.

    Arguments
    ---------
    sig : torch.Tensor
        The tensor to check.
    name : str
        What to call it in the message: the argument or the file.
    ndim : int
        The rank it must have: 1 for [T], 2 for [B, T].

    Raises
    ------
    ValueError
        If it is not a float tensor or has another rank.
    AudioError
        If it is empty or not finite.

    Example
    -------
    >>> check_sig(torch.zeros(1, 2, 100), name="wavs")
    Traceback (most recent call last):
    ...
    ValueError: wavs: must be [B, T], but its shape is [1, 2, 100]
    """
    if not isinstance(sig, torch.Tensor) or not sig.is_floating_point():
        kind = getattr(sig, "dtype", type(sig).__name__)
        raise ValueError(
            f"{name}: must be a float tensor in [-1, 1], not {kind}; "
            "divide integer samples by their full scale"
        )
    if sig.ndim != ndim:
        wanted = {1: "[T]", 2: "[B, T]"}.get(ndim, f"of rank {ndim}")
        raise ValueError(
            f"{name}: must be {wanted}, but its shape is {list(sig.shape)}"
        )
    if sig.numel() == 0:
        raise AudioError(f"{name}: is empty; give at least one sample")
    if not bool(torch.isfinite(sig).all()):
        raise AudioError(f"{name}: has NaN or infinite samples; remove them")


def _check_claims(
    path: Path, stream: soundfile.SoundFile, max_duration: float
) -> None:
    """Refuse a header whose claims are absurd, before decoding."""
    rate, channels = stream.samplerate, stream.channels
    if not MIN_SAMPLE_RATE <= rate <= MAX_SAMPLE_RATE:
        raise AudioError(
            f"{path}: the header claims {rate} Hz, not within "
            f"{MIN_SAMPLE_RATE}..{MAX_SAMPLE_RATE} Hz; "
            "resample it or repair its header"
        )
    if channels > MAX_CHANNELS:
        raise AudioError(
            f"{path}: the header claims {channels} channels, more than "
            f"{MAX_CHANNELS}; down-mix it or repair its header"
        )
    if stream.frames < 1:
        raise AudioError(f"{path}: holds no audio; record or export it again")
    if stream.frames > max_duration * rate:
        raise AudioError(
            f"{path}: the header claims {stream.frames / rate:.6g} s, more "
            f"than {max_duration:.6g} s; cut it in parts, or write it again "
            "if its header does not state its length"
        )


def _check_whole(path: Path, stream: soundfile.SoundFile) -> None:
    """Refuse a file that is shorter than its container says."""
    if stream.format == "OGG":
        _check_last_ogg_page(path)
    for name, claimed, actual in _SHRUNKEN.findall(stream.extra_info):
        # Writers may count a pad byte after the audio that is not there.
        allowed = 0 if name in ("data", "SSND", "Data Size") else 1
        if int(claimed) > int(actual) + allowed:
            raise _truncated(path, f"{claimed} bytes", actual)


def _check_last_ogg_page(path: Path) -> None:
    """Refuse an Ogg file that does not end in a whole end-of-stream page."""
    with open(path, "rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, size - _OGG_PAGE_LIMIT))
        tail = stream.read()
    page = tail[max(0, tail.rfind(b"OggS")) :]
    lacing = page[27 : 27 + page[26]] if len(page) > 26 else b""
    if not lacing or 27 + len(lacing) + sum(lacing) > len(page):
        raise _truncated(path, "a whole last page", "a part of it")
    if not page[5] & 4:
        raise _truncated(path, "an end-of-stream page", "none")


def _check_mp3_was_read(path: Path, descriptor: int) -> None:
    """Refuse an MP3 file whose length was guessed too short.

    Without a Xing header libsndfile takes the first frame's bitrate for all,
    and stops reading where the guess ends.
    """
    unread = os.fstat(descriptor).st_size - os.lseek(descriptor, 0, os.SEEK_CUR)
    if unread > _MP3_TAGS:
        raise AudioError(
            f"{path}: has no header with its length (a Xing frame), and "
            f"{unread} bytes would be lost; convert it to WAV"
        )


def _truncated(path: Path, claimed: str, actual: str) -> AudioError:
    return AudioError(
        f"{path}: is cut short (should have {claimed}, has {actual}); "
        "copy or download it again, or convert it to WAV"
    )
