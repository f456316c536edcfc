"""Reading, checking, resampling and writing audio files.

soundfile hides damage: half a WAV reads cleanly with a shrunken header, half
an MP3 claims all its frames and returns fewer, and absurd headers pass. Every
file that a user gives goes through :func:`read_audio`, which refuses these by
name. (Training reads slices of prepared corpora, see `data/reader.py`.)
"""

import os
import re
from fractions import Fraction
from pathlib import Path
from typing import TypeVar

import numpy as np
import soundfile
import torch
import torchaudio

from speechbrain_focalcodec.atomic import atomic_path
from speechbrain_focalcodec.errors import AudioError

__all__ = [
    "AUDIO_SUFFIXES",
    "check_sig",
    "find_audio_files",
    "read_audio",
    "resample",
    "resampled_length",
    "write_audio",
]

Length = TypeVar("Length", int, torch.Tensor)

AUDIO_SUFFIXES = (
    *(".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus"),
    *(".aif", ".aiff", ".au", ".caf", ".rf64", ".w64"),
)

# What a file may claim before any of it is decoded.
MIN_SAMPLE_RATE, MAX_SAMPLE_RATE = 4000, 384000  # Hz
MAX_CHANNELS = 64
MAX_DURATION = 3600.0  # seconds
MAX_VALUES = 2**29  # frames x channels: 2 GiB of float32
MAX_PEAK = 2.0**16  # float files may exceed 1, but not by this

# What write_audio writes: suffix -> soundfile format and subtype.
WRITE_FORMATS = {
    ".wav": ("WAV", "PCM_16"),
    ".flac": ("FLAC", "PCM_16"),
    ".ogg": ("OGG", "VORBIS"),
}

# libsndfile's log names each size of a header that the file does not hold.
_SHRUNKEN = re.compile(
    r"^\s*(RIFF|RIFX|riff|Riff size|FORM|data|SSND|Data Size)"
    r"\s*: (\d+) \(should be (\d+)\)",
    re.MULTILINE,
)
_OGG_PAGE_LIMIT = 27 + 255 + 255 * 255  # bytes
_MP3_TAGS = 4096  # bytes that may follow the audio
_MAX_KERNEL = 2**22  # taps of a resampling kernel


def read_audio(
    path: str | Path,
    sample_rate: int | None = None,
    max_duration: float = MAX_DURATION,
) -> tuple[torch.Tensor, int]:
    """Read an audio file as one checked channel.

    Every format of soundfile that has a header is read. The header's claims
    are checked before anything is decoded, so that memory is bounded, and the
    decoded signal is checked against them. A file cut short is refused
    wherever its format lets one tell: WAV, AIFF, AU, W64, RF64, CAF (sizes in
    the header), FLAC (frames), Ogg (end-of-stream page), MP3 with a Xing frame
    (frame count). An MP3 file of variable bitrate without one is refused.

    Arguments
    ---------
    path : str or Path
        The file to read.
    sample_rate : int, optional
        Sample rate to resample to, in Hz. The file's own by default.
    max_duration : float
        The longest accepted duration, in seconds.

    Returns
    -------
    sig : torch.Tensor
        The mean of the channels, float32 [T].
    sample_rate : int
        The sample rate of `sig`, in Hz.

    Raises
    ------
    AudioError
        If the file is missing, unreadable, empty, cut short, not finite, or
        claims an absurd sample rate, channel count or duration.

    Example
    -------
    >>> path = getfixture("tmp_path") / "tone.wav"
    >>> write_audio(path, torch.zeros(8000), 8000)
    >>> sig, sample_rate = read_audio(path, sample_rate=16000)
    >>> sig.shape, sample_rate
    (torch.Size([16000]), 16000)
    """
    path = Path(path)
    if not path.is_file():
        raise AudioError(f"{path}: no such file; check the path")
    if path.stat().st_size == 0:
        raise AudioError(f"{path}: is empty; copy or record it again")
    if path.suffix.lower() == ".raw":
        raise AudioError(
            f"{path}: header-less audio cannot be read; convert it to WAV"
        )
    try:
        with (
            open(path, "rb") as file,
            soundfile.SoundFile(file.fileno(), closefd=False) as stream,
        ):
            _check_claims(path, stream, max_duration)
            _check_whole(path, stream)
            # In one call: soundfile seeks after each call, which is not
            # exact in MP3 files.
            channels = stream.read(dtype="float32", always_2d=True)
            claimed, rate = stream.frames, stream.samplerate
            if stream.format == "MP3":
                _check_mp3_was_read(path, file.fileno())
    except (soundfile.SoundFileError, OSError) as error:
        raise AudioError(
            f"{path}: cannot be decoded ({error}); "
            "check that it is an undamaged audio file"
        ) from error
    if len(channels) != claimed:
        raise _truncated(path, f"{claimed} frames", f"{len(channels)}")
    sig = torch.from_numpy(channels.mean(axis=1))
    # One test for both: a comparison with NaN is false.
    if not bool((sig.abs() <= MAX_PEAK).all()):
        raise AudioError(
            f"{path}: has NaN, infinite or absurdly large samples; "
            "export it again with samples in [-1, 1]"
        )
    if sample_rate is not None:
        sig = resample(sig, rate, sample_rate)
        rate = sample_rate
    return sig, rate


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
    if stream.frames * channels > MAX_VALUES:
        raise AudioError(
            f"{path}: {stream.frames} frames of {channels} channels are too "
            "many to decode at once; cut it in parts or down-mix it"
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


def resampled_length(length: Length, from_rate: int, to_rate: int) -> Length:
    """Give the length that `length` samples have at another rate.

    Arguments
    ---------
    length : int or torch.Tensor
        Number of samples at `from_rate`, or int64 numbers of them.
    from_rate : int
        Sample rate in Hz.
    to_rate : int
        Sample rate in Hz.

    Returns
    -------
    int or torch.Tensor
        ``ceil(length * to_rate / from_rate)``, exactly.

    Example
    -------
    >>> resampled_length(3, 24000, 16000)
    2
    """
    return -(-length * to_rate // from_rate)


def resample(sig: torch.Tensor, from_rate: int, to_rate: int) -> torch.Tensor:
    """Resample the last dimension by band-limited interpolation.

    By torchaudio; when the rates have no large common divisor, its kernel
    would take gigabytes, and the spectrum is cut or extended instead.

    Arguments
    ---------
    sig : torch.Tensor
        The signal, float [..., T].
    from_rate : int
        Its sample rate in Hz.
    to_rate : int
        The sample rate wanted, in Hz.

    Returns
    -------
    torch.Tensor
        The signal, float [..., ceil(T * to_rate / from_rate)].

    Raises
    ------
    ValueError
        If a rate is not within 4000..384000 Hz.

    Example
    -------
    >>> resample(torch.zeros(2, 44100), 44100, 16000).shape
    torch.Size([2, 16000])
    """
    for name, rate in (("from_rate", from_rate), ("to_rate", to_rate)):
        if not MIN_SAMPLE_RATE <= rate <= MAX_SAMPLE_RATE:
            raise ValueError(
                f"{name}={rate} is not within "
                f"{MIN_SAMPLE_RATE}..{MAX_SAMPLE_RATE} Hz"
            )
    if from_rate == to_rate:
        return sig
    length = resampled_length(sig.shape[-1], from_rate, to_rate)
    ratio = Fraction(to_rate, from_rate)
    up, down = ratio.numerator, ratio.denominator
    if up * down <= _MAX_KERNEL:
        out = torchaudio.functional.resample(sig, down, up)
    else:
        # Zeros behind the signal keep its ends apart, since the transform is
        # circular, and fill it to where both rates meet.
        meets = -(-(sig.shape[-1] + 1024) // down)
        spectrum = torch.fft.rfft(sig, n=meets * down)
        out = torch.fft.irfft(spectrum, n=meets * up) * (up / down)
    # torchaudio rounds the length in float32.
    missing = max(0, length - out.shape[-1])
    return torch.nn.functional.pad(out, (0, missing))[..., :length]


def write_audio(
    path: str | Path, sig: torch.Tensor | np.ndarray, sample_rate: int
) -> None:
    """Write one channel to a file, whole or not at all.

    Arguments
    ---------
    path : str or Path
        The file to write; its suffix gives the format: ``.wav`` and
        ``.flac`` (both 16 bits) or ``.ogg`` (Vorbis).
    sig : torch.Tensor or np.ndarray
        The signal, float [T]; clipped to [-1, 1].
    sample_rate : int
        Its sample rate in Hz.

    Raises
    ------
    AudioError
        If the signal is empty or not finite, or the suffix is not known.

    Example
    -------
    >>> path = getfixture("tmp_path") / "tone.flac"
    >>> write_audio(path, 0.5 * torch.ones(100), 16000)
    >>> read_audio(path)[0].mean()
    tensor(0.5000)
    """
    path = Path(path)
    if path.suffix.lower() not in WRITE_FORMATS:
        raise AudioError(
            f"{path}: cannot write a {path.suffix or 'suffix-less'} file; "
            f"name it {', '.join(WRITE_FORMATS)}"
        )
    kind, subtype = WRITE_FORMATS[path.suffix.lower()]
    sig = torch.as_tensor(sig).detach().cpu()
    check_sig(sig, name=str(path), ndim=1)
    samples = sig.float().clamp(-1, 1).numpy()
    with atomic_path(path) as temporary:
        try:
            with soundfile.SoundFile(
                temporary, "w", sample_rate, 1, subtype, format=kind
            ) as stream:
                # In parts: libsndfile's Vorbis encoder keeps each on the stack.
                for start in range(0, len(samples), 2**16):
                    stream.write(samples[start : start + 2**16])
        except soundfile.SoundFileError as error:
            raise AudioError(f"{path}: cannot be written ({error})") from error


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


def find_audio_files(
    folder: str | Path, suffixes: tuple[str, ...] = AUDIO_SUFFIXES
) -> list[Path]:
    """List the files of a folder tree that have one of some suffixes.

    Hidden files and folders are left out, so are linked folders.

    Arguments
    ---------
    folder : str or Path
        The folder to search.
    suffixes : tuple of str
        The suffixes wanted, in lower case; audio by default.

    Returns
    -------
    list of Path
        The files in sorted order, each beginning with `folder`.

    Raises
    ------
    AudioError
        If `folder` is not a folder.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> write_audio(folder / "a" / "b.wav", torch.zeros(100), 16000)
    >>> [path.name for path in find_audio_files(folder)]
    ['b.wav']
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise AudioError(f"{folder}: no such folder; check the path")
    found = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [
            Path(parent, name)
            for name in names
            if not name.startswith(".")
            and Path(name).suffix.lower() in suffixes
        ]
    return sorted(found)
