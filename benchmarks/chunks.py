"""What one chunk of a live stream takes, beside the memory's rate."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from measuring import time_runs
from systems import OnOnnxRuntime, make_noise

from speechbrain_focalcodec.codec import FocalCodec
from speechbrain_focalcodec.streaming import StreamingResynthesizer
from speechbrain_focalcodec.streaming.latency import ChunkTimes, Spread

GIB = 2**30


@dataclass
class ChunksResult:
    """The chunks of one model.

    Arguments
    ---------
    model, option : str
        What was measured.
    threads : int
        Of the CPU.
    chunk_ms : float
        Duration of a chunk.
    skipped : str, optional
        Why there are no numbers.
    seconds : list of float
        What each chunk took.
    weight_bytes : int, optional
        Weights, all of which are read once a chunk; None where they are
        stored otherwise.
    memory_rate : float, optional
        Bytes a second, around the measurement.
    """

    model: str
    option: str
    threads: int
    chunk_ms: float
    skipped: str | None = None
    seconds: list[float] = field(default_factory=list)
    weight_bytes: int | None = None
    memory_rate: float | None = None

    @property
    def spread(self) -> Spread | None:
        """Of all chunks (ms)."""
        return Spread.of(self.seconds, 1000)

    @property
    def real_time_factor(self) -> float | None:
        """Time of all chunks over their duration."""
        if not self.seconds:
            return None
        return 1000 * sum(self.seconds) / (len(self.seconds) * self.chunk_ms)

    @property
    def memory_share(self) -> float | None:
        """Share of the memory rate that reading the weights reaches."""
        if self.spread is None or not (self.weight_bytes and self.memory_rate):
            return None
        return 1000 * self.weight_bytes / self.spread.p50 / self.memory_rate


def memory_rate(num_bytes: int, repeats: int = 5) -> float:
    """Measure how fast memory is read, with the threads torch is set to.

    Arguments
    ---------
    num_bytes : int
        To read; many times what the caches hold.
    repeats : int
        The fastest of so many sums and products counts.

    Returns
    -------
    float
        Bytes a second.
    """
    matrix = torch.ones(max(1, num_bytes // 4096), 1024)
    vector = torch.ones(1024)
    device = torch.device("cpu")
    walls = [
        wall
        for run in (matrix.sum, lambda: matrix @ vector)
        for wall in time_runs(run, repeats + 1, device)[1:]
    ]
    return 4 * matrix.numel() / min(walls)


def full_window(codec: FocalCodec | OnOnnxRuntime) -> int:
    """Give the frames after which a stream carries all that it ever will.

    Arguments
    ---------
    codec : FocalCodec
        A causal model.

    Returns
    -------
    int
        The longest of its windows.

    Example
    -------
    >>> full_window(FocalCodec.from_pretrained("tests/parity/causal_50hz"))
    32
    """
    configs = (
        codec.config.encoder_config,
        codec.config.compressor_config,
        codec.config.decompressor_config,
    )
    names = "window_size", "last_window_size"
    return max(getattr(c, name, 1) for c in configs for name in names)


def time_chunks(
    codec: FocalCodec | OnOnnxRuntime, num_chunks: int, warm: int = 16
) -> list[float]:
    """Time chunks that are resynthesised once the windows are full.

    Arguments
    ---------
    codec : FocalCodec or OnOnnxRuntime
        A causal model.
    num_chunks : int
        How many.
    warm : int
        Chunks that do not count, after the windows are full.

    Returns
    -------
    list of float
        Seconds of each.
    """
    push: Callable[[torch.Tensor], Any]
    if isinstance(codec, OnOnnxRuntime):
        arrays = codec.stream()
        length, device = arrays.chunk_length, torch.device("cpu")

        def push(sig: torch.Tensor) -> Any:
            return arrays.push(sig.numpy())
    else:
        session = StreamingResynthesizer(codec)
        length = session.chunk_length
        device = session.encoder.direction.device

        def push(sig: torch.Tensor) -> Any:
            return session.push(sig).cpu()

    rate = codec.sample_rate_input
    frames = full_window(codec)
    chunks = -(-frames * int(codec.encoder.hop_length) // length)
    push(make_noise(chunks * length / rate, 1, rate, device)[0])
    times = ChunkTimes(length / rate)
    sig = make_noise((warm + num_chunks) * length / rate, 1, rate, device)[0]
    for chunk in sig.split(length):
        with times.chunk():
            push(chunk)
    return list(times.seconds[warm:])
