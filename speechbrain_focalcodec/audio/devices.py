"""The microphone and the loudspeaker, through PortAudio (extra ``live``)."""

import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import numpy as np
import torch

from speechbrain_focalcodec.audio.live_resampling import StreamResampler
from speechbrain_focalcodec.errors import AudioError
from speechbrain_focalcodec.utils.extras import import_extra

__all__ = ["Microphone", "Playback", "import_sounddevice"]

# All in seconds.
BLOCK = 0.01  # one block of the device
WAITING = 2.0  # longest queue of recorded audio
PLAY_WAITING = 1.0  # longest queue of audio to play
PLAY_LEAD = 0.02  # silence before the first sound, against stutter
POLL = 0.1  # interval of checks for an interrupt
DEVICE_TIMEOUT = 5.0  # timeout for samples of the device

NAMES = {"input": "microphone", "output": "loudspeaker"}


def import_sounddevice() -> Any:
    """Import sounddevice.

    Raises AudioError with advice if the package or the PortAudio library is
    missing.
    """
    try:
        return import_extra("sounddevice", "live")
    except ImportError as error:
        raise AudioError(f"live audio: {error}") from error
    except OSError as error:
        raise AudioError(
            f"live audio: {error}; install PortAudio (Debian and Ubuntu: apt "
            "install libportaudio2)"
        ) from error


def _device_rate(sd: Any, kind: str, wanted: int) -> int:
    """`wanted` if the default device supports it; else the device's rate."""
    try:
        device = sd.query_devices(kind=kind)
    except (sd.PortAudioError, ValueError) as error:
        file = ", or give an audio file" if kind == "input" else ""
        raise AudioError(
            f"no {NAMES[kind]} was found ({error}); connect one and make it "
            f"the system's default{file}"
        ) from error
    try:
        check = getattr(sd, f"check_{kind}_settings")
        check(channels=1, dtype="float32", samplerate=wanted)
    except (sd.PortAudioError, ValueError):
        return int(device["default_samplerate"])
    return wanted


@contextmanager
def _opening(sd: Any, kind: str) -> Iterator[None]:
    """Convert PortAudio's errors to AudioError."""
    try:
        yield
    except (sd.PortAudioError, ValueError) as error:
        raise AudioError(
            f"the {NAMES[kind]} cannot be opened ({error}); close other "
            "programs that use it, and see that this one may"
        ) from error


class Microphone:
    """One channel of the system's default microphone.

    A context manager that records within its block. Recorded audio waits in a
    queue of two seconds; when that is full, new samples are lost and counted.

    Arguments
    ---------
    sample_rate : int
        Sample rate of the output (Hz); a device without it is resampled.

    Attributes
    ----------
    device_rate : int
        Sample rate of the device (Hz).
    latency : float
        Latency of the device (within the block only) and resampling (s).
    overflows : int
        Number of overflows that the device reports.
    lost_samples : int
        Samples, at the device's rate, lost because the queue was full.

    Raises
    ------
    AudioError
        If sounddevice, PortAudio or a microphone is missing, or it cannot be
        opened.
    """

    def __init__(self, sample_rate: int) -> None:
        self._sd = import_sounddevice()
        self.device_rate = _device_rate(self._sd, "input", sample_rate)
        self._resampler = StreamResampler(self.device_rate, sample_rate)
        self.overflows = self.lost_samples = 0
        unit = self._resampler.block
        self._block = unit * max(1, round(BLOCK * self.device_rate / unit))
        # Samples that the resampler holds back come with the next block.
        behind = math.ceil(self._resampler.delay * self.device_rate)
        blocks = math.ceil(behind / self._block)
        self.latency = blocks * self._block / self.device_rate
        size = round(WAITING * self.device_rate / self._block)
        self._queue: queue.Queue[tuple[np.ndarray, float]] = queue.Queue(size)

    def _callback(
        self, indata: np.ndarray, frames: int, _: Any, status: Any
    ) -> None:
        """Called by PortAudio's thread with each block."""
        self.overflows += bool(status.input_overflow)
        try:
            item = indata[:, 0].copy(), time.perf_counter()
            self._queue.put_nowait(item)
        except queue.Full:
            self.lost_samples += frames

    def __enter__(self) -> "Microphone":
        with _opening(self._sd, "input"):
            self._stream = self._sd.InputStream(
                samplerate=self.device_rate,
                blocksize=self._block,
                channels=1,
                dtype="float32",
                callback=self._callback,
            )
            self._stream.start()
        self.latency += self._stream.latency
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stream.close()

    def blocks(
        self, stopped: Callable[[], bool]
    ) -> Iterator[tuple[torch.Tensor, float]]:
        """Yield recorded blocks until `stopped()`, then those in the queue.

        Arguments
        ---------
        stopped : callable
            Whether to end the recording.

        Yields
        ------
        sig : torch.Tensor
            Float [T] at the output's rate.
        arrived : float
            Time at which the device delivered it (`time.perf_counter`).

        Raises
        ------
        AudioError
            If the device delivers nothing for some seconds.
        """
        arrived = time.perf_counter()
        while not stopped():
            try:
                sig, arrived = self._queue.get(timeout=POLL)
            except queue.Empty:
                if time.perf_counter() - arrived > DEVICE_TIMEOUT:
                    raise AudioError(
                        f"the microphone gave nothing for {DEVICE_TIMEOUT:g} "
                        "s; check that it is connected and that this program "
                        "may record"
                    ) from None
                continue
            yield self._resampler.push(torch.from_numpy(sig)), arrived
        self._stream.stop()
        while not self._queue.empty():
            sig, arrived = self._queue.get()
            yield self._resampler.push(torch.from_numpy(sig)), arrived
        yield self._resampler.flush(), arrived


class Playback:
    """Plays a signal on the system's default loudspeaker as it is written.

    A context manager; at the end of its block the queue is played. Silence
    fills gaps; when more than a second is queued, the oldest audio is dropped.
    Both are counted.

    Arguments
    ---------
    sample_rate : int
        Sample rate of the signal (Hz); resampled if the device lacks it.

    Attributes
    ----------
    latency : float
        Latency of the device (within the block only), of resampling and of
        the silence at the start (s).
    underruns : int
        Number of gaps.
    lost_samples : int
        Samples, at the device's rate, that were dropped.

    Raises
    ------
    AudioError
        If sounddevice, PortAudio or a loudspeaker is missing, or it cannot be
        opened.
    """

    def __init__(self, sample_rate: int) -> None:
        self._sd = import_sounddevice()
        self.device_rate = _device_rate(self._sd, "output", sample_rate)
        self._resampler = StreamResampler(sample_rate, self.device_rate)
        self.latency = self._resampler.delay + PLAY_LEAD
        self.underruns = self.lost_samples = 0
        self._lock = threading.Lock()
        self._parts: deque[np.ndarray] = deque()
        self._waiting = 0
        self._started = self._ending = self._is_dry = False
        self._ended = threading.Event()

    def write(self, sig: torch.Tensor) -> None:
        """Append a signal, float [T], to the queue."""
        part = self._resampler.push(sig.float().cpu())
        if len(part) and not self._started:
            self._put(np.zeros(round(PLAY_LEAD * self.device_rate), "float32"))
            self._started = True
        self._put(part.numpy())

    def _put(self, part: np.ndarray) -> None:
        if not len(part):
            return
        with self._lock:
            self._parts.append(part)
            self._waiting += len(part)
            limit = PLAY_WAITING * self.device_rate + len(part)
            while self._waiting > limit:
                oldest = len(self._parts.popleft())
                self._waiting -= oldest
                self.lost_samples += oldest

    def _callback(
        self, outdata: np.ndarray, frames: int, _: Any, status: Any
    ) -> None:
        """Called by PortAudio's thread for each block."""
        self.underruns += bool(status.output_underflow)
        filled = 0
        with self._lock:
            while filled < frames and self._parts:
                part = self._parts.popleft()
                taken, rest = np.split(part, [frames - filled])
                outdata[filled : filled + len(taken), 0] = taken
                filled += len(taken)
                if len(rest):
                    self._parts.appendleft(rest)
            self._waiting -= filled
        outdata[filled:] = 0
        if filled < frames and self._ending:
            raise self._sd.CallbackStop
        is_dry = filled < frames
        self.underruns += is_dry and self._started and not self._is_dry
        self._is_dry = is_dry

    def __enter__(self) -> "Playback":
        with _opening(self._sd, "output"):
            self._stream = self._sd.OutputStream(
                samplerate=self.device_rate,
                channels=1,
                dtype="float32",
                callback=self._callback,
                finished_callback=self._ended.set,
            )
            self._stream.start()
        self.latency += self._stream.latency
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self._put(self._resampler.flush().numpy())
            self._ending = True
            self._ended.wait(PLAY_WAITING + DEVICE_TIMEOUT)
        self._stream.close()
