"""Reading and writing audio files of any length in bounded memory."""

import shutil
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType

import numpy as np
import soundfile
import torch

from speechbrain_focalcodec.audio.gate import CheckedFile, check_sig
from speechbrain_focalcodec.audio.resampling import (
    check_sample_rate,
    resample,
    resample_context,
    resampled_length,
)
from speechbrain_focalcodec.errors import AudioError
from speechbrain_focalcodec.utils.files import atomic_path

__all__ = ["MAX_STREAM_DURATION", "AudioReader", "AudioWriter"]

MAX_STREAM_DURATION = 24 * 3600.0  # seconds

# Formats of AudioWriter: suffix -> soundfile format and subtype.
WRITE_FORMATS = {
    ".wav": ("WAV", "PCM_16"),
    ".flac": ("FLAC", "PCM_16"),
    ".ogg": ("OGG", "VORBIS"),
}

_ENCODE_SAMPLES = 2**16  # in one call
_MAX_WAV_SAMPLES = (2**32 - 2**10) // 2  # 16 bits each, without the header

# An integer number of seconds is an integer number of samples at any rate.
_BLOCK_DURATION = 30  # seconds that are decoded and resampled together


class AudioReader:
    """An audio file as one checked channel, read from disk in pieces.

    Same output and checks as :func:`~speechbrain_focalcodec.audio.read_audio`,
    in memory that depends on the sample rates and on the ranges read, not on
    the file's length or number of channels. Damage that only decoding shows is
    an error where it is read; so do not use the samples as a complete file
    before the end is read.

    The signal is resampled in blocks of 30 s with context. Files of up to 30 s
    are one block, with exactly the output of `read_audio`. Longer ones differ
    by rounding at most (below 1e-6; measured: not at all). At awkward ratios,
    for which `resample` cuts the spectrum, context beyond a second is missing:
    measured at 8009..48001 Hz to 16 kHz for peaks of 1, speech differs by
    1.5e-4 at most (rms 1.5e-5), white noise by 6.4e-3 (rms 1.5e-3).

    A context manager, which closes the file.

    Arguments
    ---------
    path : str or Path
        The file to read.
    sample_rate : int, optional
        Sample rate to resample to (Hz); the file's own by default.
    max_duration : float
        Longest accepted duration (s).
    channel : int, optional
        The channel to read, from 0; the mean of all by default.
    strict : bool
        Whether to raise an error in place of a warning: channels that
        cancel, samples far outside [-1, 1], near silence.

    Attributes
    ----------
    num_samples : int
        Length of the resampled signal.
    sample_rate : int
        Its sample rate (Hz).
    file_num_samples : int
        Length of the file, in samples of one channel.
    file_sample_rate : int
        Sample rate of the file (Hz).

    Raises
    ------
    AudioError
        If the file is missing, unreadable, empty, cut short, or claims an
        absurd sample rate, channel count or duration, or lacks `channel`.
    ValueError
        If `sample_rate` is not within 4000..384000 Hz.

    Example
    -------
    >>> path = getfixture("tmp_path") / "tone.wav"
    >>> with AudioWriter(path, 8000) as writer:
    ...     writer.write(0.5 * torch.ones(8000))
    >>> with AudioReader(path, sample_rate=16000) as reader:
    ...     for start in range(0, reader.num_samples, 8000):
    ...         reader.read(start, start + 8000).shape
    torch.Size([8000])
    torch.Size([8000])
    """

    def __init__(
        self,
        path: str | Path,
        sample_rate: int | None = None,
        max_duration: float = MAX_STREAM_DURATION,
        channel: int | None = None,
        strict: bool = False,
    ) -> None:
        if sample_rate is not None:
            check_sample_rate("sample_rate", sample_rate)
        self._file = CheckedFile(path, max_duration, channel, strict)
        self.file_num_samples = self._file.num_frames
        self.file_sample_rate = self._file.sample_rate
        self.sample_rate = sample_rate or self.file_sample_rate
        self.num_samples = resampled_length(
            self.file_num_samples, self.file_sample_rate, self.sample_rate
        )
        self._context = resample_context(
            self.file_sample_rate, self.sample_rate
        )
        self._decoded = _SlidingSig()
        self._resampled = _SlidingSig()
        self._num_blocks = 0  # done
        self._start = 0  # of the last range read

    def read(self, start: int, stop: int) -> torch.Tensor:
        """Read a range of the resampled signal, float32 [stop - start].

        Ranges may overlap and may leave gaps, but starts must not decrease:
        samples before the last `start` are freed.

        Raises
        ------
        AudioError
            If the decoded audio is damaged, cut short or not finite. Later
            calls that have to decode more raise it again.
        ValueError
            If the range is empty, goes back or lies outside the signal.
        """
        if not 0 <= start < stop <= self.num_samples:
            raise ValueError(
                f"start={start}, stop={stop}: not a range within the "
                f"{self.num_samples} samples"
            )
        if start < self._start:
            raise ValueError(
                f"start={start}: must not be before the last start, "
                f"{self._start}; open the file again to go back"
            )
        self._start = start
        self._resampled.forget(start)
        while self._resampled.stop < stop:
            self._resample_block()
            self._resampled.forget(start)
        return self._resampled.get(start, stop)

    def _resample_block(self) -> None:
        """Decode and resample the next block."""
        from_rate, to_rate = self.file_sample_rate, self.sample_rate
        seconds = self._num_blocks * _BLOCK_DURATION
        left = max(0, seconds * from_rate - self._context)
        right = min(
            (seconds + _BLOCK_DURATION) * from_rate + self._context,
            self.file_num_samples,
        )
        self._decoded.append(self._file.read(right - self._decoded.stop))
        self._decoded.forget(left)
        sig = resample(self._decoded.get(left, right), from_rate, to_rate)
        before = seconds * to_rate - left * to_rate // from_rate
        self._resampled.append(sig[before : before + _BLOCK_DURATION * to_rate])
        self._num_blocks += 1

    def close(self) -> None:
        """Close the file; nothing more can be decoded."""
        self._file.close()

    def __enter__(self) -> "AudioReader":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class _SlidingSig:
    """The last part of a growing signal."""

    def __init__(self) -> None:
        self.start = self.stop = 0
        self._parts: deque[torch.Tensor] = deque()

    def append(self, part: torch.Tensor) -> None:
        self._parts.append(part)
        self.stop += len(part)

    def forget(self, start: int) -> None:
        """Free the parts that end before `start`."""
        while self._parts and self.start + len(self._parts[0]) <= start:
            self.start += len(self._parts.popleft())

    def get(self, start: int, stop: int) -> torch.Tensor:
        """Copy a range."""
        pieces, begin = [], self.start
        for part in self._parts:
            pieces.append(part[max(0, start - begin) : max(0, stop - begin)])
            begin += len(part)
        return torch.cat(pieces)


def write_format(path: str | Path) -> tuple[str, str]:
    """Format and subtype, as soundfile names them, of a file to write."""
    suffix = Path(path).suffix
    if suffix.lower() not in WRITE_FORMATS:
        raise AudioError(
            f"{path}: cannot write a {suffix or 'suffix-less'} file; name it "
            f"{', '.join(WRITE_FORMATS)}"
        )
    return WRITE_FORMATS[suffix.lower()]


class AudioWriter:
    """A one-channel audio file, written in pieces, atomically.

    A context manager: the file appears when its block ends. After an exception
    in the block it does not appear, and an earlier file is kept.

    Arguments
    ---------
    path : str or Path
        The file to write; its suffix selects the format: ``.wav`` and
        ``.flac`` (both 16 bits) or ``.ogg`` (Vorbis).
    sample_rate : int
        Its sample rate (Hz).

    Raises
    ------
    AudioError
        If the suffix is not known, the file cannot be written, or, at the
        end of the block, nothing was written.

    Example
    -------
    >>> path = getfixture("tmp_path") / "tone.flac"
    >>> with AudioWriter(path, 16000) as writer:
    ...     for _ in range(3):
    ...         writer.write(0.5 * torch.ones(100))
    ...     path.exists()
    False
    >>> path.exists(), writer.num_samples
    (True, 300)
    """

    def __init__(self, path: str | Path, sample_rate: int) -> None:
        self.path = Path(path)
        self.sample_rate = sample_rate
        self.num_samples = 0
        self._format, self._subtype = write_format(path)
        self._stack = ExitStack()
        self._is_entered = False
        self._stream: soundfile.SoundFile  # opened by the first sample
        self._pending = _SlidingSig()
        self._num_encoded = 0

    def write(self, sig: torch.Tensor | np.ndarray) -> None:
        """Write the next samples, float [T], clipped to [-1, 1]; T may be 0.

        Raises AudioError if they are not finite, too many for a WAV file or
        cannot be written; ValueError for another shape or type, or outside the
        block.
        """
        if not self._is_entered:
            raise ValueError(f"{self.path}: write within a with block")
        sig = torch.as_tensor(sig).detach().cpu()
        if sig.numel() == 0:
            return
        check_sig(sig, name=str(self.path), ndim=1)
        if (
            self._format == "WAV"
            and self.num_samples + len(sig) > _MAX_WAV_SAMPLES
        ):
            raise AudioError(
                f"{self.path}: a WAV file cannot hold more than 4 GiB; "
                "write a .flac or .ogg file"
            )
        if self.num_samples == 0:
            self._open()
        self._pending.append(sig.float().clamp(-1, 1))
        self.num_samples += len(sig)
        self._encode(self.num_samples // _ENCODE_SAMPLES * _ENCODE_SAMPLES)

    def _open(self) -> None:
        temporary = self._stack.enter_context(atomic_path(self.path))
        # soundfile cannot open a path that is no valid Unicode.
        file = self._stack.enter_context(open(temporary, "wb"))
        with self._naming_errors():
            self._stream = soundfile.SoundFile(
                file.fileno(),
                "w",
                self.sample_rate,
                channels=1,
                subtype=self._subtype,
                format=self._format,
                closefd=False,
            )
        self._stack.push(self._finish)

    def _encode(self, stop: int) -> None:
        """Encode up to a sample, in parts of fixed size.

        Other parts would change a Vorbis file's first milliseconds; and
        libsndfile's Vorbis encoder keeps each part on the stack.
        """
        for start in range(self._num_encoded, stop, _ENCODE_SAMPLES):
            part = self._pending.get(start, min(start + _ENCODE_SAMPLES, stop))
            with self._naming_errors():
                self._stream.write(part.numpy())
        self._num_encoded = stop
        self._pending.forget(stop)

    def _finish(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Encode the rest, unless there was an error, and close the file."""
        with self._naming_errors(), self._stream:
            if kind is None:
                self._encode(self.num_samples)

    @contextmanager
    def _naming_errors(self) -> Iterator[None]:
        """Convert errors of libsndfile to AudioError."""
        try:
            yield
        except soundfile.SoundFileError as error:
            reason = str(error)
            # libsndfile reports only "System error".
            if shutil.disk_usage(self.path.parent).free < 2**16:
                reason = "the disk is full; free some space and try again"
            raise AudioError(
                f"{self.path}: cannot be written ({reason})"
            ) from error

    def __enter__(self) -> "AudioWriter":
        self._is_entered = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._is_entered = False
        self._stack.__exit__(kind, error, trace)
        if kind is None and self.num_samples == 0:
            raise AudioError(f"{self.path}: is empty; give at least one sample")
