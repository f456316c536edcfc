"""Stream a file or a recording through a session, chunk by chunk.

Each chunk is pushed separately, so that its processing is timed.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from speechbrain_focalcodec.audio.devices import Microphone, Playback
from speechbrain_focalcodec.audio.stream import AudioReader, AudioWriter
from speechbrain_focalcodec.errors import AudioError
from speechbrain_focalcodec.streaming.latency import ChunkTimes, LatencyReport
from speechbrain_focalcodec.streaming.sessions import (
    Stream,
    StreamingResynthesizer,
)

__all__ = [
    "Piece",
    "file_pieces",
    "microphone_pieces",
    "run_session",
    "stream_audio",
    "until_interrupt",
    "warm_up",
]


class Piece(NamedTuple):
    """A part of the input.

    Arguments
    ---------
    sig : torch.Tensor
        Float [T], a chunk; the last one may be shorter.
    ready : float, optional
        Live: time of its last sample, by `time.perf_counter`.
    """

    sig: torch.Tensor
    ready: float | None = None


def file_pieces(
    reader: AudioReader,
    chunk_length: int,
    duration: float | None = None,
    realtime: bool = False,
    stopped: Callable[[], bool] = lambda: False,
) -> Iterator[Piece]:
    """Read a file chunk by chunk.

    Arguments
    ---------
    reader : AudioReader
        The file.
    chunk_length : int
        Samples.
    duration : float, optional
        Maximum duration (s).
    realtime : bool
        Whether to yield each chunk when a microphone would have recorded it.
    stopped : callable
        Returns True to stop early.

    Yields
    ------
    Piece
        Chunks from the file's beginning.

    Raises
    ------
    AudioError
        If the file is damaged.
    """
    total = reader.num_samples
    if duration is not None:
        total = min(total, max(1, round(duration * reader.sample_rate)))
    begin = None
    for start in range(0, total, chunk_length):
        if stopped():
            return
        stop = min(start + chunk_length, total)
        # Reading time does not delay the chunk.
        sig = reader.read(start, stop)
        if not realtime:
            yield Piece(sig)
            continue
        begin = time.perf_counter() if begin is None else begin
        ready = begin + stop / reader.sample_rate
        time.sleep(max(0.0, ready - time.perf_counter()))
        yield Piece(sig, ready)


def microphone_pieces(
    microphone: Microphone,
    chunk_length: int,
    stopped: Callable[[], bool],
    max_samples: int | None = None,
) -> Iterator[Piece]:
    """Cut a recording into chunks.

    Arguments
    ---------
    microphone : Microphone
        An entered microphone.
    chunk_length : int
        Samples.
    stopped : callable
        Returns True to stop.
    max_samples : int, optional
        Maximum number of samples.

    Yields
    ------
    Piece
        Chunks as they are recorded.

    Raises
    ------
    AudioError
        If the microphone delivers no audio for some seconds.
    """
    left = max_samples
    blocks = microphone.blocks(lambda: stopped() or left == 0)
    waiting, ready = torch.empty(0), 0.0
    for sig, ready in blocks:
        if left is not None:
            sig = sig[:left]
            left -= len(sig)
        waiting = torch.cat([waiting, sig])
        while len(waiting) >= chunk_length:
            yield Piece(waiting[:chunk_length], ready)
            waiting = waiting[chunk_length:].clone()
    if len(waiting):
        yield Piece(waiting, ready)


def warm_up(session: Stream, chunk_length: int) -> None:
    """Run a model once, so that the first chunk does not wait for set-up.

    Arguments
    ---------
    session : Stream
        Session of that model; it is reset.
    chunk_length : int
        Samples.
    """
    for length in (chunk_length, chunk_length, chunk_length // 2):
        session.push(torch.zeros(length))
    session.flush()
    session.reset()


def run_session(
    session: StreamingResynthesizer,
    pieces: Iterable[Piece],
    sinks: Iterable[Callable[[torch.Tensor], object]],
    times: ChunkTimes,
) -> int:
    """Code all pieces and end the stream.

    Arguments
    ---------
    session : StreamingResynthesizer
        New, or reset.
    pieces : iterable of Piece
        The input.
    sinks : iterable of callable
        Each is called with every part of the output, float [N] on the CPU.
    times : ChunkTimes
        Times each chunk until its output is on the CPU.

    Returns
    -------
    int
        Number of input samples.
    """
    sinks = list(sinks)
    num_samples = 0
    rest = torch.empty(0)
    for sig, ready in pieces:
        num_samples += len(sig)
        if len(sig) < session.chunk_length:
            rest = sig
            continue
        with times.chunk(ready):
            out = session.push(sig).cpu()
        _give(out, sinks)
    with times.tail():
        out = torch.cat([session.push(rest), session.flush()]).cpu()
    _give(out, sinks)
    return num_samples


def _give(
    out: torch.Tensor, sinks: list[Callable[[torch.Tensor], object]]
) -> None:
    for sink in sinks if len(out) else ():
        sink(out)


def stream_audio(
    session: StreamingResynthesizer,
    source: str | Path | None,
    output: str | Path | None = None,
    *,
    duration: float | None = None,
    realtime: bool = False,
    play: bool = False,
    announce: Callable[[str], object] = print,
    channel: int | None = None,
    strict: bool = False,
) -> LatencyReport:
    """Stream a file or the microphone and measure the latency.

    Arguments
    ---------
    session : StreamingResynthesizer
        New, or reset.
    source : str or Path, optional
        The file; by default the microphone, until Ctrl-C.
    output : str or Path, optional
        Audio file to write atomically.
    duration : float, optional
        Maximum duration (s).
    realtime : bool
        Whether to read a file at the pace of a microphone.
    play : bool
        Whether to play the output; a file is then read in real time.
    announce : callable
        Called with a message when recording starts.
    channel : int, optional
        The file's channel to read, from 0; the mean of all by default.
    strict : bool
        Whether to raise an error in place of a warning: channels that
        cancel, samples far outside [-1, 1], near silence.

    Returns
    -------
    LatencyReport
        Times without loading and warming up.

    Raises
    ------
    AudioError
        If a file cannot be read or written, or there is no sound device.
    KeyboardInterrupt
        If Ctrl-C ends a file before its end; the output is written by then.

    Example
    -------
    >>> from speechbrain_focalcodec import FocalCodec
    >>> codec = FocalCodec.from_pretrained("tests/parity/causal_50hz")
    >>> session = StreamingResynthesizer(codec)
    >>> output = getfixture("tmp_path") / "output.wav"
    >>> clip = "speechbrain_focalcodec/assets/demo.flac"
    >>> stream_audio(session, clip, output, duration=1.0).chunks
    12
    """
    codec = session.codec
    rate, chunk_length = codec.sample_rate_input, session.chunk_length
    times = ChunkTimes(chunk_length / rate)
    warm_up(session, chunk_length)
    player = microphone = None
    sinks: list[Callable[[torch.Tensor], Any]] = []
    begin = time.perf_counter()
    with ExitStack() as stack:
        # Closed last, so that the file is complete before the rest is played.
        if play:
            player = stack.enter_context(Playback(codec.sample_rate_output))
            sinks.append(player.write)
        if output is not None:
            writer = AudioWriter(output, codec.sample_rate_output)
            sinks.append(stack.enter_context(writer).write)
        stopped = stack.enter_context(until_interrupt())
        if source is None:
            microphone = stack.enter_context(Microphone(rate))
            announce(
                f"listening at {microphone.device_rate} Hz; Ctrl-C ends it"
            )
            limit = None if duration is None else round(duration * rate)
            pieces = microphone_pieces(microphone, chunk_length, stopped, limit)
        else:
            reader = stack.enter_context(
                AudioReader(source, rate, channel=channel, strict=strict)
            )
            pieces = file_pieces(
                reader, chunk_length, duration, realtime or play, stopped
            )
        num_samples = run_session(session, pieces, sinks, times)
        if num_samples == 0 and output is not None:
            raise AudioError(
                f"{source or 'microphone'}: nothing was "
                f"recorded, so there is no {output}"
            )
    if source is not None and stopped():
        told = f"stopped after {num_samples / rate:.2f} s of {source}"
        if output is not None:
            told += f": {output} is whole up to there; --overwrite begins anew"
        raise KeyboardInterrupt(told)
    wall_s = time.perf_counter() - begin
    counts: dict[str, float] = {}
    other_s = 0.0
    if microphone is not None:
        counts["input_overflows"] = microphone.overflows
        lost_s = microphone.lost_samples / microphone.device_rate
        counts["input_lost_s"] = lost_s
        other_s += microphone.latency
    if player is not None:
        counts["playback_underruns"] = player.underruns
        counts["playback_lost_s"] = player.lost_samples / player.device_rate
        other_s += player.latency
    return times.report(num_samples / rate, wall_s, other_s, counts)


@contextmanager
def until_interrupt() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C into a flag; a second one raises.

    Has no effect outside of the main thread, which alone receives signals.

    Yields
    ------
    callable
        Returns whether Ctrl-C was pressed.

    Example
    -------
    >>> with until_interrupt() as interrupted:
    ...     signal.raise_signal(signal.SIGINT)
    ...     interrupted()
    True
    """
    pressed = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield pressed.is_set
        return

    def press(*_: object) -> None:
        pressed.set()
        # Also if the process was started with SIGINT ignored.
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, press)
    try:
        yield pressed.is_set
    finally:
        signal.signal(signal.SIGINT, before)
