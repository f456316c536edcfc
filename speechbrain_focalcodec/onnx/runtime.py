"""FocalCodec on onnxruntime: NumPy arrays in and out, and no PyTorch.

It runs what ``focalcodec export-onnx`` wrote. Nothing here, nor in what it
imports, imports torch.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from speechbrain_focalcodec.errors import (
    AudioError,
    CheckpointError,
    TokenError,
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
from speechbrain_focalcodec.onnx.sessions import (
    OnnxDirection,
    with_clear_errors,
)
from speechbrain_focalcodec.streaming.base import (
    check_token_range,
    check_token_type,
)
from speechbrain_focalcodec.utils.extras import import_extra

__all__ = ["MAX_SECONDS", "MAX_SECONDS_ATTENTION", "OnnxFocalCodec"]

#: Seconds of audio of one pass, by default: all that is in memory at once.
MAX_SECONDS = 600.0
#: The same where attention is: there memory grows with the square.
MAX_SECONDS_ATTENTION = 60.0
# Of causal models: streams at once, each with a state of its own.
MAX_STREAMS = 16


class OnnxFocalCodec:
    """Speech to tokens and back, as
    :class:`~speechbrain_focalcodec.codec.FocalCodec` does it.

    What an utterance gives does not depend on the batch it is in. Offline
    models do each in a single pass, causal ones chunk by chunk, in bounded
    memory; for live audio see :mod:`speechbrain_focalcodec.onnx.sessions`.

    Arguments
    ---------
    folder : str or Path
        What ``focalcodec export-onnx`` wrote.
    providers : sequence, optional
        What onnxruntime computes with; the CPU by default.
    threads : int, optional
        Of the CPU; onnxruntime's choice by default.
    max_seconds : float, optional
        Longest audio of one pass, a batch's items together: a batch beyond is
        done in parts, an utterance beyond is refused. By default
        `MAX_SECONDS`; for encoding with attention `MAX_SECONDS_ATTENTION`.
        Causal models take any length, whatever is given.

    Raises
    ------
    ImportError
        If the extra `onnx` is not installed.
    ConfigError
        If `onnx.json` is missing or does not fit its schema.
    CheckpointError
        If a file is missing or is not the one that `onnx.json` names, a graph
        has weights elsewhere or other inputs or outputs, or onnxruntime cannot
        load it.
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
        options.log_severity_level = 3  # errors alone
        if threads is not None:
            options.intra_op_num_threads = threads

        def load(
            name: str,
            step: OnnxStep | None,
            inputs: tuple[str, str],
            outputs: tuple[str, str],
        ) -> Any:
            path = folder / name
            check_external_data(path, self.facts)
            try:
                session = runtime.InferenceSession(
                    str(path), options, providers=providers
                )
            # Its errors have no base class but this.
            except Exception as error:
                raise CheckpointError(
                    f"{path}: onnxruntime cannot load it: {error}"
                ) from error
            check_graph(session, path, step, inputs, outputs)
            return session

        steps = self.facts.kind == "steps"
        self._encoder = load(
            ENCODER_STEP_FILE if steps else ENCODER_FILE,
            self.facts.encoder,
            ("sig", "lengths"),
            ("toks", "out_lengths" if steps else "tok_lengths"),
        )
        self._decoder = load(
            DECODER_STEP_FILE if steps else DECODER_FILE,
            self.facts.decoder,
            ("toks", "lengths" if steps else "tok_lengths"),
            ("sig", "out_lengths" if steps else "sig_lengths"),
        )
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
        """What the model is called."""
        return self.facts.name

    @property
    def fingerprint(self) -> str:
        """The identity of the model that was exported (SHA-256, hex)."""
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
        """Tokens a second (Hz)."""
        return self.sample_rate_input / self.hop_length

    @property
    def hop_length(self) -> int:
        """Input samples a token."""
        return math.prod(stride for _, stride in self.facts.convolutions)

    @property
    def output_hop_length(self) -> int:
        """Output samples a token."""
        return self.facts.output_hop_length

    @property
    def codebook_size(self) -> int:
        """Number of different tokens."""
        return self.facts.codebook_size

    @property
    def bitrate(self) -> float:
        """Bits a second."""
        return self.token_rate * (self.codebook_size.bit_length() - 1)

    @property
    def causal(self) -> bool:
        """Whether the model can run on a stream."""
        return self.facts.causal

    @property
    def chunk_length(self) -> int | None:
        """Input samples of one chunk of a stream; None when offline."""
        return self.facts.chunk_length

    @property
    def latency(self) -> float | None:
        """Length of one chunk of a stream (ms); None when offline."""
        if self.chunk_length is None:
            return None
        return 1000 * self.chunk_length / self.sample_rate_input

    def num_tokens(self, num_samples: int) -> int:
        """Tokens that a waveform gives.

        Arguments
        ---------
        num_samples : int
            Samples at the input's rate; at least 1.

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
        """Samples at the output's rate that last as long as the input.

        Arguments
        ---------
        num_samples : int or np.ndarray
            Samples at the input's rate.

        Returns
        -------
        int or np.ndarray
            Samples at the output's rate, rounded up.
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
            If a sample is infinite or no number, or an utterance is longer
            than `max_seconds`.
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
        if self.causal:
            direction = self.encoding()
            return self._run_steps(direction, sig, lengths, self.num_tokens)
        rate = self.sample_rate_input
        most = int(self.max_seconds_encode * rate)
        if lengths.max() > most:
            raise AudioError(_too_long(lengths.max() / rate, most / rate))
        return self._run(self._encoder, sig, lengths, most, self.num_tokens)

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
            If a token is no integer in [0, codebook_size), or there are more
            than of `max_seconds`.
        ValueError
            If a shape is wrong.
        """
        toks = _check_array(toks, "toks", "[B, N]")
        check_token_type(toks)
        lengths = _check_lengths(tok_lengths, toks, "tok_lengths")
        within = np.arange(toks.shape[1]) < lengths[:, None]
        toks = np.where(within, toks, 0).astype(np.int64)
        check_token_range(toks, self)

        def count(num: int) -> int:
            return num * self.output_hop_length

        if self.causal:
            return self._run_steps(self.decoding(), toks, lengths, count)
        rate = self.token_rate
        # An utterance that can be encoded has up to one token more.
        most = math.ceil(self.max_seconds_decode * rate)
        if lengths.max() > most:
            raise TokenError(_too_long(lengths.max() / rate, most / rate))
        return self._run(self._decoder, toks, lengths, most, count)

    def resynthesize(
        self, sig: np.ndarray, lengths: np.ndarray | None = None
    ) -> Any:
        """Waveform to tokens and back, as long as it was.

        Arguments
        ---------
        sig : np.ndarray
            Waveform, float [B, T], at `sample_rate_input`.
        lengths : np.ndarray, optional
            Samples, integer [B].

        Returns
        -------
        np.ndarray or (np.ndarray, np.ndarray)
            Waveform at `sample_rate_output` that lasts as long as `sig`
            (samples rounded up); with `lengths`, also samples, int64 [B].
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
        session: Any,
        x: np.ndarray,
        lengths: np.ndarray,
        most: int,
        count: Callable[[int], int],
    ) -> tuple[np.ndarray, np.ndarray]:
        """A batch, in parts of at most `most` steps."""
        longest = int(lengths.max())
        size = max(most // longest, 1)
        if self.facts.weights == "int8":
            # Its activations have one scale for all that runs together.
            size = 1
        names = [item.name for item in session.get_inputs()]
        out: np.ndarray | None = None
        counts = np.array([count(int(n)) for n in lengths])
        for start in range(0, len(x), size):
            rows = slice(start, start + size)
            steps = int(lengths[rows].max())
            feed = dict(
                zip(names, (x[rows, :steps], lengths[rows]), strict=True)
            )
            part, part_lengths = with_clear_errors(session.run)(None, feed)
            self._check_counts(part_lengths, counts[rows])
            if out is None:
                shape = len(x), count(x.shape[1])
                out = np.zeros(shape, part.dtype)
            out[rows, : part.shape[1]] = part
        assert out is not None
        return out, counts

    def _run_steps(
        self,
        direction: OnnxDirection,
        x: np.ndarray,
        lengths: np.ndarray,
        count: Callable[[int], int],
    ) -> tuple[np.ndarray, np.ndarray]:
        """A batch, chunk by chunk."""
        # 8-bit activations share a scale within a batch.
        size = 1 if self.facts.weights == "int8" else MAX_STREAMS
        counts = np.array([count(int(n)) for n in lengths])
        shape = len(x), count(x.shape[1])
        out: np.ndarray = np.zeros(shape, direction.output_dtype)
        for start in range(0, len(x), size):
            rows = slice(start, start + size)
            got = direction.run_all(x[rows], lengths[rows], out[rows])
            self._check_counts(got, counts[rows])
        return out, counts

    def _check_counts(self, got: np.ndarray, wanted: np.ndarray) -> None:
        """Refuse graphs that are not what `onnx.json` tells of."""
        if not np.array_equal(got, wanted):
            raise CheckpointError(
                f"{self.name}: the graph gives lengths {got.tolist()}, but "
                f"onnx.json tells of {wanted.tolist()}; export the model again"
            )


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
    """Lengths as int64, of the whole array when there are none."""
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
