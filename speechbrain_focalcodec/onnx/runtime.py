"""FocalCodec on onnxruntime, with NumPy arrays and without torch.

It runs a model that ``focalcodec export-onnx`` wrote.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from speechbrain_focalcodec.errors import (
    AudioError,
    CheckpointError,
    TokenError,
)
from speechbrain_focalcodec.onnx.direction import (
    OnnxDirection,
    with_clear_errors,
)
from speechbrain_focalcodec.onnx.files import (
    DECODER_FILE,
    DECODER_STEP_FILE,
    ENCODER_FILE,
    ENCODER_STEP_FILE,
    OnnxStep,
    check_external_data,
    check_files,
    check_graph,
    read_facts,
)
from speechbrain_focalcodec.streaming.base import (
    check_token_range,
    check_token_type,
)
from speechbrain_focalcodec.utils.extras import import_extra

__all__ = ["MAX_SECONDS", "MAX_SECONDS_ATTENTION", "OnnxFocalCodec"]

#: Default maximum of seconds of audio in one pass, which limits memory.
MAX_SECONDS = 600.0
#: The same with attention, whose memory grows with the square of the length.
MAX_SECONDS_ATTENTION = 60.0
# Maximum batch size of causal models.
MAX_STREAMS = 16


class OnnxFocalCodec:
    """An exported :class:`~speechbrain_focalcodec.codec.FocalCodec`.

    The result of an utterance does not depend on its batch. Offline models
    code an utterance in one pass, causal models chunk by chunk in bounded
    memory. For live audio see :mod:`speechbrain_focalcodec.onnx.sessions`.

    Arguments
    ---------
    folder : str or Path
        Folder that ``focalcodec export-onnx`` wrote.
    providers : sequence, optional
        Execution providers of onnxruntime; the CPU by default.
    threads : int, optional
        Number of CPU threads; onnxruntime's choice by default.
    max_seconds : float, optional
        Maximum of seconds of audio in one pass, summed over the batch. Larger
        batches are split; longer utterances are refused. By default
        `MAX_SECONDS`; for encoding with attention `MAX_SECONDS_ATTENTION`.
        Causal models ignore it and take any length.

    Raises
    ------
    ImportError
        If the extra `onnx` is not installed.
    ConfigError
        If `onnx.json` is missing or does not fit its schema.
    CheckpointError
        If a file is missing or has another hash than in `onnx.json`, if a
        graph has other weight files, inputs or outputs, or if onnxruntime
        cannot load it.
    ValueError
        If an argument is wrong.
    """

    def __init__(
        self,
        folder: str | Path,
        providers: Sequence[Any] | None = None,
        threads: int | None = None,
        max_seconds: float | None = None,
    ):
        runtime = import_extra("onnxruntime", "onnx")
        if threads is not None and (
            isinstance(threads, bool)
            or not isinstance(threads, int)
            or threads < 1
        ):
            raise ValueError(
                f"threads must be an integer of at least 1, got {threads!r}"
            )
        if max_seconds is not None and not 0 < max_seconds < math.inf:
            raise ValueError(
                "max_seconds must be a number of seconds above 0, got "
                f"{max_seconds!r}"
            )
        providers = list(providers or ["CPUExecutionProvider"])
        known = runtime.get_available_providers()
        for item in providers:
            name = item if isinstance(item, str) else item[0]
            if name not in known:
                raise ValueError(
                    f"providers: {name} is not in this onnxruntime, which has "
                    f"{', '.join(known)}"
                )
        # To pickle: another process loads the folder again.
        folder = Path(folder).absolute()
        self._made_with = folder, providers, threads, max_seconds
        self.facts = read_facts(folder)
        check_files(folder, self.facts)
        options = runtime.SessionOptions()
        options.log_severity_level = 3  # errors
        if threads is not None:
            options.intra_op_num_threads = threads

        def load(name: str, encodes: bool, step: OnnxStep | None) -> Any:
            path = folder / name
            check_external_data(path, self.facts)
            try:
                session = runtime.InferenceSession(
                    str(path), options, providers=providers
                )
            # Its errors have no other base class.
            except Exception as error:
                raise CheckpointError(
                    f"{path}: onnxruntime cannot load it: {error}"
                ) from error
            check_graph(session, path, encodes, step)
            return session

        steps = self.facts.kind == "steps"
        encoder = ENCODER_STEP_FILE if steps else ENCODER_FILE
        decoder = DECODER_STEP_FILE if steps else DECODER_FILE
        self._encoder = load(encoder, True, self.facts.encoder)
        self._decoder = load(decoder, False, self.facts.decoder)
        attention = self.facts.attention
        self.max_seconds_encode = max_seconds or (
            MAX_SECONDS_ATTENTION if attention else MAX_SECONDS
        )
        self.max_seconds_decode = max_seconds or MAX_SECONDS
        if steps:
            self.max_seconds_encode = self.max_seconds_decode = math.inf

    def __reduce__(self):
        return type(self), self._made_with

    # Facts

    @property
    def name(self) -> str:
        """Name of the model."""
        return self.facts.name

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the exported model (SHA-256, hex)."""
        return self.facts.fingerprint

    @property
    def sample_rate_input(self) -> int:
        """Sample rate of the waveform to encode (Hz)."""
        return self.facts.sample_rate_input

    @property
    def sample_rate_output(self) -> int:
        """Sample rate of the decoded waveform (Hz)."""
        return self.facts.sample_rate_output

    @property
    def token_rate(self) -> float:
        """Tokens per second (Hz)."""
        return self.sample_rate_input / self.hop_length

    @property
    def hop_length(self) -> int:
        """Input samples per token."""
        return math.prod(stride for _, stride in self.facts.convolutions)

    @property
    def output_hop_length(self) -> int:
        """Output samples per token."""
        return self.facts.output_hop_length

    @property
    def codebook_size(self) -> int:
        """Number of different tokens."""
        return self.facts.codebook_size

    @property
    def bitrate(self) -> float:
        """Bits per second."""
        return self.token_rate * (self.codebook_size.bit_length() - 1)

    @property
    def causal(self) -> bool:
        """Whether the model can stream."""
        return self.facts.causal

    @property
    def chunk_length(self) -> int | None:
        """Input samples of a chunk; None in an offline model."""
        return self.facts.chunk_length

    @property
    def latency(self) -> float | None:
        """Length of a chunk (ms); None in an offline model."""
        if self.chunk_length is None:
            return None
        return 1000 * self.chunk_length / self.sample_rate_input

    def num_tokens(self, num_samples: int) -> int:
        """Number of tokens of a waveform.

        Arguments
        ---------
        num_samples : int
            Input samples; at least 1.

        Returns
        -------
        int
            Tokens; at least 1.
        """
        steps = int(num_samples)
        for kernel, stride in self.facts.convolutions:
            steps = (max(steps, kernel) - kernel) // stride + 1
        return steps

    def output_num_samples(self, num_samples: Any) -> Any:
        """Number of output samples of the same duration as the input.

        Arguments
        ---------
        num_samples : int or np.ndarray
            Input samples.

        Returns
        -------
        int or np.ndarray
            Output samples, rounded up.
        """
        rate = self.sample_rate_output
        return -(-num_samples * rate // self.sample_rate_input)

    # Streams

    def encoding(self) -> OnnxDirection:
        """From samples to tokens, chunk by chunk.

        Returns
        -------
        OnnxDirection
            With chunks of `chunk_length` samples.

        Raises
        ------
        StreamError
            If the model is an offline one.
        """
        return OnnxDirection(self, True, self._encoder, self.facts.encoder)

    def decoding(self) -> OnnxDirection:
        """From tokens to samples, chunk by chunk.

        Returns
        -------
        OnnxDirection
            With chunks as long as those of the encoder.

        Raises
        ------
        StreamError
            If the model is an offline one.
        """
        return OnnxDirection(self, False, self._decoder, self.facts.decoder)

    # Whole utterances

    def encode(
        self, sig: np.ndarray, lengths: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Waveform to tokens.

        Arguments
        ---------
        sig : np.ndarray
            Waveform, float [B, T], at `sample_rate_input`.
        lengths : np.ndarray, optional
            Samples, integer [B].

        Returns
        -------
        toks : np.ndarray
            Tokens, int64 [B, N], 0 beyond each length.
        tok_lengths : np.ndarray
            Tokens, int64 [B].

        Raises
        ------
        AudioError
            If a sample is NaN or infinite, or an utterance is longer than
            `max_seconds`.
        ValueError
            If a shape or a type is wrong.
        """
        sig = _check_array(sig, "sig", "[B, T]")
        if sig.dtype.kind != "f":
            raise ValueError(
                f"sig must be of floats within [-1, 1], got {sig.dtype}; "
                "divide int16 samples by 32768"
            )
        lengths = _check_lengths(lengths, sig, "lengths")
        within = np.arange(sig.shape[1]) < lengths[:, None]
        sig = np.where(within, sig, 0).astype(np.float32)
        if not np.isfinite(sig).all():
            raise AudioError(
                "sig holds samples that are infinite or no numbers (NaN); "
                "repair the audio"
            )
        counts = np.array([self.num_tokens(n) for n in lengths])
        out = np.zeros((len(sig), self.num_tokens(sig.shape[1])), np.int64)
        if self.causal:
            run = self.encoding().run_all
            return self._run(run, sig, lengths, MAX_STREAMS, out, counts)
        rate = self.sample_rate_input
        most = int(self.max_seconds_encode * rate)
        if lengths.max() > most:
            raise AudioError(_too_long(lengths.max() / rate, most / rate))
        size = max(most // int(lengths.max()), 1)
        run = partial(_one_pass, self._encoder)
        return self._run(run, sig, lengths, size, out, counts)

    def decode(
        self, toks: np.ndarray, tok_lengths: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Tokens to waveform.

        Arguments
        ---------
        toks : np.ndarray
            Tokens, integer [B, N].
        tok_lengths : np.ndarray, optional
            Tokens, integer [B].

        Returns
        -------
        sig : np.ndarray
            Waveform, float32 [B, T], at `sample_rate_output`, 0 beyond each
            length.
        sig_lengths : np.ndarray
            Samples, int64 [B].

        Raises
        ------
        TokenError
            If a token is not an integer in [0, codebook_size), or an
            utterance is longer than `max_seconds`.
        ValueError
            If a shape is wrong.
        """
        toks = _check_array(toks, "toks", "[B, N]")
        check_token_type(toks)
        lengths = _check_lengths(tok_lengths, toks, "tok_lengths")
        within = np.arange(toks.shape[1]) < lengths[:, None]
        toks = np.where(within, toks, 0).astype(np.int64)
        check_token_range(toks, self)

        counts = lengths * self.output_hop_length
        shape = len(toks), toks.shape[1] * self.output_hop_length
        out: np.ndarray = np.zeros(shape, np.float32)
        if self.causal:
            run = self.decoding().run_all
            return self._run(run, toks, lengths, MAX_STREAMS, out, counts)
        rate = self.token_rate
        # An utterance that can be encoded has up to one token more.
        most = math.ceil(self.max_seconds_decode * rate)
        if lengths.max() > most:
            raise TokenError(_too_long(lengths.max() / rate, most / rate))
        size = max(most // int(lengths.max()), 1)
        run = partial(_one_pass, self._decoder)
        return self._run(run, toks, lengths, size, out, counts)

    def resynthesize(
        self, sig: np.ndarray, lengths: np.ndarray | None = None
    ) -> Any:
        """Waveform to tokens and back to a waveform of the same duration.

        Arguments
        ---------
        sig : np.ndarray
            Waveform, float [B, T], at `sample_rate_input`.
        lengths : np.ndarray, optional
            Samples, integer [B].

        Returns
        -------
        np.ndarray or (np.ndarray, np.ndarray)
            Waveform [B, T] at `sample_rate_output`, its length rounded up;
            with `lengths`, also samples, int64 [B].
        """
        toks, tok_lengths = self.encode(sig, lengths)
        rec, _ = self.decode(toks, tok_lengths)
        num_samples = self.output_num_samples(np.shape(sig)[1])
        rec = rec[:, :num_samples]
        rec = np.pad(rec, ((0, 0), (0, num_samples - rec.shape[1])))
        if lengths is None:
            return rec
        lengths = self.output_num_samples(np.asarray(lengths, np.int64))
        return np.where(np.arange(num_samples) < lengths[:, None], rec, 0), (
            lengths
        )

    def _run(
        self,
        code: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray],
        x: np.ndarray,
        lengths: np.ndarray,
        size: int,
        out: np.ndarray,
        counts: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Run a batch, `size` utterances at a time."""
        if self.facts.weights == "int8":
            # 8-bit activations share a scale within a batch.
            size = 1
        for start in range(0, len(x), size):
            rows = slice(start, start + size)
            got = code(x[rows], lengths[rows], out[rows])
            if not np.array_equal(got, counts[rows]):
                raise CheckpointError(
                    f"{self.name}: the graph gives lengths {got.tolist()}, "
                    f"but onnx.json tells of {counts[rows].tolist()}; export "
                    "the model again"
                )
        return out, counts


def _one_pass(
    session: Any, x: np.ndarray, lengths: np.ndarray, out: np.ndarray
) -> np.ndarray:
    """Run the graph of an offline model; returns the output's lengths."""
    names = [item.name for item in session.get_inputs()]
    values = x[:, : int(lengths.max())], lengths
    feed = dict(zip(names, values, strict=True))
    y, y_lengths = with_clear_errors(session.run)(None, feed)
    room = out[:, : y.shape[1]]
    room[:] = y[:, : room.shape[1]]
    return y_lengths


def _check_array(x: Any, name: str, shape: str) -> np.ndarray:
    if not isinstance(x, np.ndarray) or x.ndim != 2 or 0 in x.shape:
        got = list(x.shape) if isinstance(x, np.ndarray) else type(x)
        raise ValueError(
            f"{name} must be an array {shape} that is not empty, got {got}"
        )
    return x


def _check_lengths(
    lengths: np.ndarray | None, x: np.ndarray, name: str
) -> np.ndarray:
    """Lengths as int64; by default the length of the array."""
    if lengths is None:
        return np.full(len(x), x.shape[1], np.int64)
    if not isinstance(lengths, np.ndarray) or lengths.dtype.kind not in "iu":
        raise ValueError(
            f"{name} must be an integer array of absolute lengths, got "
            f"{getattr(lengths, 'dtype', type(lengths).__name__)}"
        )
    if lengths.shape != x.shape[:1]:
        raise ValueError(
            f"{name} must have shape [{len(x)}], one length an item of the "
            f"batch, got {list(lengths.shape)}"
        )
    low, high = int(lengths.min()), int(lengths.max())
    if low < 1 or high > x.shape[1]:
        raise ValueError(
            f"{name} must lie in 1..{x.shape[1]}, the batch's padded length, "
            f"got {low}..{high}"
        )
    return lengths.astype(np.int64)


def _too_long(got: float, most: float) -> str:
    return (
        f"an utterance of {got:.1f} s is longer than one pass takes, "
        f"{most:g} s; cut it, raise max_seconds if memory allows, or use "
        "FocalCodec, which takes any length"
    )
