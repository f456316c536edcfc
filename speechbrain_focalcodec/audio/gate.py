"""Checks audio files and signals where they enter.

soundfile hides damage: half a WAV reads cleanly with a shorter header, half an
MP3 claims all its frames and returns fewer, and absurd headers pass.
:class:`CheckedFile` opens every file from a user and raises errors for these.
(Training reads slices of prepared corpora, see `data/reader.py`.)
"""

import logging
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
import torch

from speechbrain_focalcodec.audio.formats.whole import Whole, check_whole
from speechbrain_focalcodec.audio.resampling import (
    MAX_SAMPLE_RATE,
    MIN_SAMPLE_RATE,
)
from speechbrain_focalcodec.errors import AudioError

__all__ = ["CheckedFile", "check_sig", "open_slices"]

logger = logging.getLogger(__name__)

# Bounds on the header.
MAX_CHANNELS = 64
MAX_PEAK = 2.0**16  # float files may exceed 1, but not by this

# Thresholds of warnings.
LOUD_PEAK = 2.0
QUIET_PEAK = 2e-3
MIN_COHERENCE = 0.1

_AGAIN = "copy or download it again, or convert it to WAV"
_DECODE_VALUES = 2**20  # frames x channels decoded in one call


class CheckedFile:
    """An audio file that is checked while it is decoded in order.

    Reads every format of soundfile that has a header. The header's claims are
    checked before anything is decoded, and the decoded audio is checked against
    them. A file that is cut short, or longer than its header says, is refused
    if its format shows it:
    :func:`~speechbrain_focalcodec.audio.formats.whole.check_whole` supports
    WAV, RF64, W64, CAF, AIFF, AU, NIST SPHERE (sizes in the header), FLAC
    (samples up to the last frame), Ogg (pages) and MP3 (frames). If the header
    leaves the length open, as programs do that write to a pipe, the length is
    that of the file. :meth:`read` refuses damage that only decoding shows.

    At the end of the file a warning is logged if the channels cancel, samples
    are far outside [-1, 1] or nearly silent, or the last page of an Ogg file is
    not marked as the last.

    A context manager, which closes the file.

    Arguments
    ---------
    path : str or Path
        The file to read.
    max_duration : float
        Longest accepted duration (s).
    channel : int, optional
        The channel to read, from 0; the mean of all by default.
    strict : bool
        Whether to raise an error in place of a warning.

    Attributes
    ----------
    num_frames : int
        Number of frames in the header.
    num_channels : int
        Number of channels.
    sample_rate : int
        Sample rate (Hz).
    position : int
        Number of decoded frames.

    Raises
    ------
    AudioError
        If the file is missing, unreadable, empty, cut short, or claims an
        absurd sample rate, channel count or duration, or lacks `channel`.
    """

    def __init__(
        self,
        path: str | Path,
        max_duration: float,
        channel: int | None = None,
        strict: bool = False,
    ) -> None:
        self.path = path = Path(path)
        self.channel, self.strict = channel, strict
        size = _regular_size(path)
        if path.suffix.lower() == ".raw":
            raise AudioError(
                f"{path}: header-less audio cannot be read; convert it to WAV"
            )
        with ExitStack() as stack, _decoding(path):
            file = stack.enter_context(open(path, "rb"))
            whole = _check_whole(path, file, size)
            # libsndfile reads from the descriptor's position.
            os.lseek(file.fileno(), 0, os.SEEK_SET)
            stream = stack.enter_context(
                _SequentialFile(
                    file.fileno() if whole.file is file else whole.file,
                    closefd=False,
                )
            )
            self.num_frames: int = whole.num_samples or stream.frames
            self.num_channels: int = stream.channels
            self.sample_rate: int = stream.samplerate
            self._check_claims(max_duration)
            self._stream = stream
            self._stack = stack.pop_all()
        self.position = 0
        self._levels = _Levels()
        self._doubt = whole.doubt
        self._error: AudioError | None = None

    def _check_claims(self, max_duration: float) -> None:
        """Raise if claims of the header are absurd."""
        path, rate = self.path, self.sample_rate
        if not MIN_SAMPLE_RATE <= rate <= MAX_SAMPLE_RATE:
            raise AudioError(
                f"{path}: the header claims {rate} Hz, not within "
                f"{MIN_SAMPLE_RATE}..{MAX_SAMPLE_RATE} Hz; "
                "resample it or repair its header"
            )
        if self.num_channels > MAX_CHANNELS:
            raise AudioError(
                f"{path}: the header claims {self.num_channels} channels, "
                f"more than {MAX_CHANNELS}; down-mix it or repair its header"
            )
        if self.num_frames < 1:
            raise AudioError(
                f"{path}: holds no audio; record or export it again"
            )
        if self.num_frames > max_duration * rate:
            raise AudioError(
                f"{path}: the header claims {self.num_frames / rate:.6g} s, "
                f"more than {max_duration:.6g} s; cut it in parts, or write "
                "it again if its header does not state its length"
            )
        if self.channel is not None and not (
            0 <= self.channel < self.num_channels
        ):
            raise AudioError(
                f"{path}: has no channel {self.channel}; its channels are "
                f"0..{self.num_channels - 1}"
            )

    def read(self, num_frames: int) -> torch.Tensor:
        """Decode the next frames as one channel, float32 [num_frames].

        `num_frames` is at most the number of frames left. Raises AudioError if
        the file is damaged, cut short or not finite; later calls raise it
        again.
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
        for part in sig.split(step) if num_frames else ():
            channels = self._stream.read(
                len(part), dtype="float32", always_2d=True
            )
            self.position += len(channels)
            if len(channels) < len(part):
                raise AudioError(
                    f"{self.path}: is cut short or damaged (should have "
                    f"{self.num_frames} frames, has {self.position}); {_AGAIN}"
                )
            if self.channel is not None:
                channels = channels[:, self.channel : self.channel + 1]
            part[:] = torch.from_numpy(channels.mean(axis=1))
            self._levels.add(channels, part)
            # Also true for NaN.
            if not self._levels.peak <= MAX_PEAK:
                raise AudioError(
                    f"{self.path}: has NaN, infinite or absurdly large "
                    "samples; export it again with samples in [-1, 1]"
                )
            if self.position == self.num_frames:
                self._check_levels()
        return sig

    def _check_levels(self) -> None:
        """Log a warning, or raise when strict, about a doubtful signal."""
        problem = self._levels.problem() or self._doubt
        if problem is None:
            return
        if self.strict:
            raise AudioError(f"{self.path}: {problem}")
        logger.warning("%s: %s", self.path, problem)

    def close(self) -> None:
        """Close the file."""
        self._stack.close()

    def __enter__(self) -> "CheckedFile":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class _Levels:
    """Levels of a signal and its channels."""

    def __init__(self) -> None:
        self.peak = 0.0
        self._num_samples = self._num_channels = 0
        self._energy = self._channels_energy = 0.0

    def add(self, channels: np.ndarray, sig: torch.Tensor) -> None:
        """Add the next part: channels [T, C] and their mean [T]."""
        # max() would drop a NaN in second place.
        self.peak = float(np.maximum(self.peak, sig.abs().max()))
        self._num_samples += len(sig)
        self._num_channels = channels.shape[1]
        self._energy += float(sig.square().sum())
        if self._num_channels > 1:
            self._channels_energy += float(np.square(channels).sum())

    def problem(self) -> str | None:
        """A warning, or None."""
        count = self._num_channels
        # The ratio is 1 for uncorrelated channels, or if all but one are
        # silent; the number of channels for equal ones; 0 for opposite ones.
        if self._energy * count**2 < MIN_COHERENCE * self._channels_energy:
            return (
                f"its {count} channels cancel in their mean; read one of them "
                "(--channel 0)"
            )
        if self.peak > LOUD_PEAK:
            return (
                f"its samples reach {self.peak:.3g}, far outside [-1, 1]; "
                "divide them by their full scale"
            )
        if self.peak < QUIET_PEAK:
            return (
                f"is nearly silent (its peak is {self.peak:.1g} of full "
                "scale); check the recording"
            )
        return None


class _SequentialFile(soundfile.SoundFile):
    """A sound file without seeking.

    soundfile seeks to the current position after each call, which is not exact
    in MP3 files. It does not if the file is not seekable.
    """

    def seekable(self) -> bool:
        return False


@contextmanager
def _decoding(path: Path) -> Iterator[None]:
    """Convert errors of libsndfile and of the disk to AudioError."""
    try:
        yield
    except (soundfile.SoundFileError, OSError) as error:
        # The whole text of a LibsndfileError has the descriptor's number.
        reason = getattr(error, "error_string", error)
        raise AudioError(
            f"{path}: cannot be decoded ({reason}); "
            "check that it is an undamaged audio file"
        ) from error


def check_sig(sig: torch.Tensor, name: str = "sig", ndim: int = 2) -> None:
    """Check a waveform.

    Arguments
    ---------
    sig : torch.Tensor
        The tensor to check.
    name : str
        Name of the argument or file in messages.
    ndim : int
        Expected rank: 1 for [T], 2 for [B, T].

    Raises
    ------
    ValueError
        If it is not a float tensor or has another rank.
    AudioError
        If it is empty or not finite.
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


def _regular_size(path: Path) -> int:
    """Size of a regular file; AudioError if it is not one, or empty."""
    try:
        status = path.stat()
    except OSError as error:
        reason = error.strerror or "cannot be found"
        if isinstance(error, FileNotFoundError):
            reason = "no such file"
        raise AudioError(f"{path}: {reason}; check the path") from error
    if stat.S_ISDIR(status.st_mode):
        raise AudioError(f"{path}: no such file, but a folder; check the path")
    if not stat.S_ISREG(status.st_mode):
        raise AudioError(
            f"{path}: is a pipe or a device; give a file, or - for what is "
            "piped in"
        )
    if status.st_size == 0:
        raise AudioError(f"{path}: is empty; copy or record it again")
    return status.st_size


@contextmanager
def open_slices(path: str | Path, stop: int) -> Iterator[soundfile.SoundFile]:
    """Open a file of a prepared corpus to read a slice up to `stop`.

    It is checked only if libsndfile finds fewer samples than `stop`. Raises
    AudioError if it is not complete; SoundFileError or OSError if it cannot be
    read.
    """
    with ExitStack() as stack:
        raw = stack.enter_context(open(path, "rb"))
        try:
            file = soundfile.SoundFile(raw.fileno(), closefd=False)
        except soundfile.SoundFileError:
            file = None
        # FLAC of unknown length has 2**63 - 1 frames, and cannot seek.
        if file is None or not stop <= file.frames < 2**40:
            whole = _check_whole(
                Path(path), raw, os.fstat(raw.fileno()).st_size
            )
            if whole.file is not raw:
                if file is not None:
                    file.close()
                file = soundfile.SoundFile(whole.file)
        if file is None:
            os.lseek(raw.fileno(), 0, os.SEEK_SET)
            file = soundfile.SoundFile(raw.fileno(), closefd=False)
        yield stack.enter_context(file)


def _check_whole(path: Path, file: BinaryIO, size: int) -> Whole:
    try:
        return check_whole(file, size, path.suffix)
    except AudioError as error:
        raise AudioError(f"{path}: {error}; {_AGAIN}") from error
