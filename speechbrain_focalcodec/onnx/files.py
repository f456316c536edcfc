"""The files of an exported model, and the schema of `onnx.json`.

Does not import torch.
"""

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from speechbrain_focalcodec.errors import CheckpointError, ConfigError, abridge
from speechbrain_focalcodec.utils.files import read_file, sha256_of

__all__ = [
    "DECODER_FILE",
    "DECODER_STEP_FILE",
    "ENCODER_FILE",
    "ENCODER_STEP_FILE",
    "FACTS_FILE",
    "OnnxFacts",
    "OnnxStep",
    "check_external_data",
    "check_files",
    "check_graph",
    "read_facts",
]

ENCODER_FILE = "encoder.onnx"
DECODER_FILE = "decoder.onnx"
#: Files of causal models.
ENCODER_STEP_FILE = "encoder_step.onnx"
DECODER_STEP_FILE = "decoder_step.onnx"
#: Written last, so that a folder with it is complete.
FACTS_FILE = "onnx.json"

MAX_FACTS_BYTES = 1 << 20
MAX_RATE = 1_000_000

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
#: A file in the folder itself.
FileName = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.]{0,99}$")
]
Positive = Annotated[int, Field(ge=1, le=MAX_RATE)]

#: A tensor of the state.
StateName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9_.]{1,200}$")]


class OnnxStep(BaseModel):
    """Facts of a step graph of a causal model.

    Arguments
    ---------
    chunk_length : int
        Samples or tokens of a chunk.
    state : dict
        Shape of each tensor of the state without the batch, float32, in the
        order of the graph's inputs. A new stream has zeros.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    chunk_length: Positive
    state: dict[
        StateName, Annotated[list[Positive], Field(min_length=1, max_length=8)]
    ]


class OnnxFacts(BaseModel):
    """The content of `onnx.json`: a closed schema.

    Arguments
    ---------
    format : int
        Version of this layout.
    kind : str
        ``offline``: `encoder.onnx` and `decoder.onnx` take whole utterances;
        ``steps``: `encoder_step.onnx` and `decoder_step.onnx` take a chunk.
    name, fingerprint : str
        As in :class:`~speechbrain_focalcodec.codec.FocalCodec`.
    sample_rate_input, sample_rate_output : int
        Sample rates in Hz.
    codebook_size : int
        Number of different tokens.
    convolutions : list of (int, int)
        Kernel and stride of each layer that shortens time, from samples to
        tokens.
    output_hop_length : int
        Output samples per token.
    causal : bool
        Whether the model can stream.
    chunk_length : int, optional
        Input samples of a chunk; None in an offline model.
    attention : bool
        Whether memory grows with the square of the length.
    weights : str
        ``float32`` or ``int8``.
    files : dict
        SHA-256 of each file.
    encoder, decoder : OnnxStep, optional
        Facts of the step graphs; None in an offline model.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    format: Literal[1]
    kind: Literal["offline", "steps"]
    name: Annotated[str, Field(min_length=1, max_length=200)]
    fingerprint: Sha256
    sample_rate_input: Positive
    sample_rate_output: Positive
    codebook_size: Annotated[int, Field(ge=2, le=1 << 30)]
    convolutions: Annotated[
        list[tuple[Positive, Positive]], Field(min_length=1, max_length=64)
    ]
    output_hop_length: Positive
    causal: bool
    chunk_length: Positive | None
    attention: bool
    weights: Literal["float32", "int8"]
    files: dict[FileName, Sha256]
    encoder: OnnxStep | None = None
    decoder: OnnxStep | None = None

    @model_validator(mode="after")
    def _check(self) -> "OnnxFacts":
        if self.codebook_size & (self.codebook_size - 1):
            raise ValueError("codebook_size must be a power of two")
        steps = self.kind == "steps"
        if {self.causal, self._has_chunks()} != {steps}:
            raise ValueError(
                "a causal model has chunks"
                if steps
                else "an offline model has no chunks"
            )
        if steps:
            names = {ENCODER_STEP_FILE, DECODER_STEP_FILE}
        else:
            names = {ENCODER_FILE, DECODER_FILE}
        missing = names - self.files.keys()
        if missing:
            raise ValueError(f"files must name {', '.join(sorted(missing))}")
        return self

    def _has_chunks(self) -> bool | None:
        """Whether the facts of chunks are present; None if only some are."""
        parts = self.chunk_length, self.encoder, self.decoder
        there = {part is not None for part in parts}
        if len(there) > 1:
            return None
        if self.encoder and self.encoder.chunk_length != self.chunk_length:
            return None
        return there.pop()


def read_facts(folder: str | Path) -> OnnxFacts:
    """Read and validate `onnx.json`.

    Arguments
    ---------
    folder : str or Path
        Folder with an exported model.

    Returns
    -------
    OnnxFacts
        Its content.

    Raises
    ------
    ConfigError
        If it is missing, not JSON, or does not fit the schema.
    """
    path = Path(folder) / FACTS_FILE
    try:
        content = read_file(path, MAX_FACTS_BYTES)
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: not found; make the folder with: focalcodec export-onnx"
        ) from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    try:
        return OnnxFacts.model_validate_json(content)
    except ValidationError as error:
        problems = [
            f"{'.'.join(map(str, item['loc'])) or 'content'}: {item['msg']}"
            for item in error.errors()
        ]
        text = abridge(problems, "; ").encode("unicode_escape").decode()
        raise ConfigError(
            f"{path}: {text}; export the model again with this version"
        ) from None


def check_files(folder: str | Path, facts: OnnxFacts) -> None:
    """Compare the hashes of an exported model's files with `onnx.json`.

    Arguments
    ---------
    folder : str or Path
        The folder.
    facts : OnnxFacts
        Content of its `onnx.json`.

    Raises
    ------
    CheckpointError
        If a file is missing, cannot be read, or has another hash.
    """
    for name, wanted in facts.files.items():
        path = Path(folder) / name
        try:
            got = sha256_of(path)
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read: {error}") from None
        if got != wanted:
            raise CheckpointError(
                f"{path}: is not the file that {FACTS_FILE} names (SHA-256 "
                f"{got[:12]}, not {wanted[:12]}); copy or export it again"
            )


def check_graph(
    session: Any, path: Path, encodes: bool, step: OnnxStep | None
) -> None:
    """Compare a graph's inputs and outputs with `onnx.json`.

    Arguments
    ---------
    session : onnxruntime.InferenceSession
        The graph.
    path : Path
        File of the graph.
    encodes : bool
        Whether it is the encoder or the decoder.
    step : OnnxStep, optional
        Facts of the graph in a causal model.

    Raises
    ------
    CheckpointError
        If there are other inputs or outputs.
    """
    sig = "sig", "tensor(float)", "lengths" if encodes else "sig_lengths"
    toks = "toks", "tensor(int64)", "tok_lengths"
    source, target = (sig, toks) if encodes else (toks, sig)
    chunk = None
    if step is not None:
        chunk = step.chunk_length
        source = *source[:2], "lengths"
        target = *target[:2], "out_lengths"
    for what, ports, (data, kind, lengths), size, mark in (
        ("inputs", session.get_inputs(), source, chunk, ""),
        ("outputs", session.get_outputs(), target, None, "_out"),
    ):
        wanted: list[tuple[str, str, list[int | None]]] = [
            (data, kind, [None, size]),
            (lengths, "tensor(int64)", [None]),
        ]
        if step is not None:
            wanted.append((f"seen{mark}", "tensor(int64)", [None]))
            wanted += [
                (f"state{mark}.{name}", "tensor(float)", [None, *shape])
                for name, shape in step.state.items()
            ]
        fits = len(ports) == len(wanted) and all(
            (port.name, port.type, len(port.shape)) == (name, kind, len(shape))
            # Free dimensions have a name in place of a number.
            and all(
                number is None or not isinstance(size, int) or size == number
                for size, number in zip(port.shape, shape, strict=True)
            )
            for port, (name, kind, shape) in zip(ports, wanted, strict=True)
        )
        if not fits:
            raise CheckpointError(
                f"{path}: has other {what} than {FACTS_FILE} tells of; export "
                "the model again"
            )


# The fields of an ONNX file that lead to tensors, by number (onnx.proto of
# ONNX 1.17, unchanged for years).
_FIELDS: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {
        **{5: "tensor", 6: "graph", 10: "tensor", 11: "graph"},
        **{22: "sparse", 23: "sparse"},
    },
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "external"},
    "external": {1: "key", 2: "value"},
}


def check_external_data(path: Path, facts: OnnxFacts) -> None:
    """Refuse a graph with weights in a file that `onnx.json` does not list.

    Arguments
    ---------
    path : Path
        The graph.
    facts : OnnxFacts
        Content of `onnx.json`.

    Raises
    ------
    CheckpointError
        If it has such weights, or is not an ONNX file.
    """
    try:
        with (
            open(path, "rb") as stream,
            mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data,
        ):
            names = set(_external_files(data))
    except (IndexError, ValueError):
        raise CheckpointError(
            f"{path}: onnxruntime cannot load it: is no ONNX file"
        ) from None
    unlisted = sorted(names - facts.files.keys())
    if unlisted:
        raise CheckpointError(
            f"{path}: has weights in {abridge([ascii(x) for x in unlisted])}, "
            f"which {FACTS_FILE} does not list; export the model again"
        )


def _external_files(data: mmap.mmap) -> Iterator[str]:
    """Locations of tensors outside of an ONNX file."""
    parts = [("model", 0, len(data))]
    while parts:
        kind, start, stop = parts.pop()
        key = value = b""
        for number, first, last in _fields(data, start, stop):
            inside = _FIELDS[kind].get(number)
            if inside == "key":
                key = data[first:last]
            elif inside == "value":
                value = data[first:last]
            elif inside is not None:
                parts.append((inside, first, last))
        if key == b"location":
            yield value.decode(errors="backslashreplace")


def _fields(
    data: mmap.mmap, at: int, stop: int
) -> Iterator[tuple[int, int, int]]:
    """Number, start and end of each field of a message (protobuf)."""
    while at < stop:
        tag, at = _varint(data, at)
        kind, first = tag & 7, at
        if kind == 0:
            _, at = _varint(data, at)
        elif kind == 2:
            size, first = _varint(data, at)
            at = first + size
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        else:
            raise ValueError("a group, which ONNX does not have")
        if at > stop:
            raise ValueError("a field that is cut short")
        if kind == 2:
            yield tag >> 3, first, at


def _varint(data: mmap.mmap, at: int) -> tuple[int, int]:
    """Decode a varint; returns the number and its end."""
    number = 0
    for i in range(10):
        byte = data[at + i]
        number |= (byte & 127) << 7 * i
        if byte < 128:
            return number, at + i + 1
    raise ValueError("a number that is too long")
