"""Export models as ONNX graphs, for programs without PyTorch.

The encoder of an offline model maps `sig` [batch, time] and `lengths` [batch]
to `toks` and `tok_lengths`; the decoder maps these to `sig` and `sig_lengths`.
Batch size and length are free. The graphs of a causal model take one chunk
and a state, and also return the next state.
:class:`~speechbrain_focalcodec.OnnxFocalCodec` runs both.
"""

import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from speechbrain_focalcodec.onnx.files import (
    DECODER_FILE,
    DECODER_STEP_FILE,
    ENCODER_FILE,
    ENCODER_STEP_FILE,
    FACTS_FILE,
    OnnxFacts,
    OnnxStep,
)
from speechbrain_focalcodec.onnx.graphs import (
    DecoderGraph,
    EncoderGraph,
    StepGraph,
)
from speechbrain_focalcodec.utils.extras import import_extra
from speechbrain_focalcodec.utils.files import atomic_write_text, sha256_of

if TYPE_CHECKING:
    from speechbrain_focalcodec.codec import FocalCodec

__all__ = ["export_onnx"]

#: The first opset that has GELU as one operator.
OPSET = 20
# Smaller matrices gain nothing from 8 bits.
MIN_INT8_SIZE = 64
# Length of the traced example in samples.
EXAMPLE = 16000


@torch.no_grad()
def export_onnx(
    codec: "FocalCodec",
    folder: str | Path,
    int8: bool = False,
    announce: Callable[[str], object] = lambda name: None,
) -> OnnxFacts:
    """Export a model to an encoder, a decoder and `onnx.json`.

    The graphs of an offline model take whole utterances, those of a causal
    model a chunk at a time.

    Arguments
    ---------
    codec : FocalCodec
        The model; it is left unchanged.
    folder : str or Path
        Output folder, created if missing. An earlier export is replaced file
        by file, `onnx.json` last; a reader in between gets an error.
    int8 : bool
        Whether to store the weights of linear layers as 8-bit integers: the
        files are smaller and faster, and some tokens differ.
    announce : callable
        Called with the name of each graph before it is exported, which takes
        up to a minute.

    Returns
    -------
    OnnxFacts
        Content of `onnx.json`.

    Raises
    ------
    ImportError
        If the extra `onnx` is not installed.
    ValueError
        If the model was accelerated, which rounds its weights, or if only
        some of its parts are causal.
    """
    _check(codec)
    for module in ("onnx", "onnxscript", "onnxruntime"):
        import_extra(module, "onnx")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".onnx.", dir=folder))
    try:
        write = _write_steps if codec.causal else _write_offline
        steps = write(codec, temporary, int8, announce)
        files = sorted(temporary.iterdir())
        hashes = {path.name: sha256_of(path) for path in files}
        weights: Literal["int8", "float32"] = "int8" if int8 else "float32"
        facts = _facts(codec, hashes, weights, steps)
        for path in files:
            with open(path, "rb") as stream:
                os.fsync(stream.fileno())
            os.replace(path, folder / path.name)
    finally:
        shutil.rmtree(temporary)
    atomic_write_text(folder / FACTS_FILE, facts.model_dump_json(indent=2))
    return facts


def _check(codec: "FocalCodec") -> None:
    """Refuse models that cannot be exported."""
    if codec.accelerated:
        raise ValueError(
            f"{codec.name} was accelerated ({codec.accelerated}), which "
            "rounds its weights; export the model before that"
        )
    parts = (codec.encoder, codec.decoder, *_focal_configs(codec))
    if len({part.causal for part in parts}) > 1:
        raise ValueError(
            f"{codec.name} is causal in some parts and offline in others, "
            "which cannot be exported; choose one that is either"
        )


def _focal_configs(codec: "FocalCodec") -> tuple[Any, Any]:
    return codec.config.compressor_config, codec.config.decompressor_config


def _facts(
    codec: "FocalCodec",
    files: dict[str, str],
    weights: Literal["float32", "int8"],
    steps: dict[str, OnnxStep],
) -> OnnxFacts:
    encoder: Any = codec.config.encoder_config
    wavlm = codec.config.encoder_name == "WavLM"
    if wavlm and codec.causal:
        # Padded on the left.
        convolutions = [(1, stride) for stride in encoder.strides]
    elif wavlm:
        convolutions = list(
            zip(encoder.kernel_sizes, encoder.strides, strict=True)
        )
    else:
        # Padded, so that no sample is lost.
        convolutions = [(1, encoder.hop_length)]
    factors = codec.config.compressor_config.downscale_factors
    return OnnxFacts(
        format=1,
        kind="steps" if steps else "offline",
        name=codec.name,
        fingerprint=codec.fingerprint,
        sample_rate_input=codec.sample_rate_input,
        sample_rate_output=codec.sample_rate_output,
        codebook_size=codec.codebook_size,
        convolutions=convolutions + [(1, factor) for factor in factors],
        output_hop_length=codec.output_hop_length,
        causal=codec.causal,
        chunk_length=codec.chunk_length,
        attention=wavlm and not steps,
        weights=weights,
        files=files,
        **steps,
    )


def _write_offline(
    codec: "FocalCodec",
    folder: Path,
    int8: bool,
    announce: Callable[[str], object],
) -> dict[str, OnnxStep]:
    """Write graphs for whole utterances."""
    lengths = torch.tensor([EXAMPLE, EXAMPLE // 2])
    tok_lengths = lengths // codec.hop_length
    toks = torch.zeros(2, int(tok_lengths[0]), dtype=torch.int64)
    sig = torch.zeros(2, EXAMPLE)
    batch, steps = (
        torch.export.Dim(name, min=1) for name in ("batch", "steps")
    )
    for graph, inputs, outputs, name in (
        (
            EncoderGraph(codec),
            {"sig": sig, "lengths": lengths},
            ["toks", "tok_lengths"],
            ENCODER_FILE,
        ),
        (
            DecoderGraph(codec),
            {"toks": toks, "tok_lengths": tok_lengths},
            ["sig", "sig_lengths"],
            DECODER_FILE,
        ),
    ):
        announce(name)
        _write(
            graph,
            tuple(inputs.values()),
            ({0: batch, 1: steps}, {0: batch}),
            (list(inputs), outputs),
            folder / name,
            int8,
        )
    return {}


def _write_steps(
    codec: "FocalCodec",
    folder: Path,
    int8: bool,
    announce: Callable[[str], object],
) -> dict[str, OnnxStep]:
    """Write graphs for a chunk; returns their facts."""
    batch = torch.export.Dim("batch", min=1)
    steps = {}
    for key, step, ways, dtype, file in (
        (
            "encoder",
            StepGraph.encoder(codec),
            ("sig", "toks"),
            torch.float32,
            ENCODER_STEP_FILE,
        ),
        (
            "decoder",
            StepGraph.decoder(codec),
            ("toks", "sig"),
            torch.int64,
            DECODER_STEP_FILE,
        ),
    ):
        announce(file)
        lengths = torch.full((2,), step.chunk_length)
        kept = [torch.cat([x, x]) for x in step.start.values()]
        x = torch.zeros(2, step.chunk_length, dtype=dtype)
        _write(
            step,
            (x, lengths, torch.zeros_like(lengths), kept),
            ({0: batch}, {0: batch}, {0: batch}, [{0: batch} for _ in kept]),
            (
                [ways[0], "lengths", "seen"]
                + [f"state.{name}" for name in step.start],
                [ways[1], "out_lengths", "seen_out"]
                + [f"state_out.{name}" for name in step.start],
            ),
            folder / file,
            int8,
        )
        state = {name: list(x.shape[1:]) for name, x in step.start.items()}
        steps[key] = OnnxStep(chunk_length=step.chunk_length, state=state)
    return steps


def _write(
    graph: nn.Module,
    inputs: tuple[Any, ...],
    shapes: tuple[Any, ...],
    names: tuple[list[str], list[str]],
    path: Path,
    int8: bool,
) -> None:
    """Trace a graph and write it, weights beside it above 1.5 GB."""
    with _quiet():
        program = torch.onnx.export(
            graph.eval(),
            inputs,
            dynamo=True,
            dynamic_shapes=shapes,
            input_names=names[0],
            output_names=names[1],
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None
    linear = _linear_nodes(program.model)
    for node in program.model.graph:
        # Paths on this machine.
        node.metadata_props.clear()
    program.save(path)
    if int8:
        _quantize(path, linear)


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the messages of the exporter."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _linear_nodes(model: Any) -> list[str]:
    """Names of large linear layers, without the head, which needs float32."""
    names = []
    for node in model.graph:
        if node.op_type not in ("MatMul", "Gemm"):
            continue
        weight = node.inputs[1]
        # Constants (filters, Fourier transforms) have dotted names.
        if weight.const_value is None or "." in weight.name:
            continue
        scopes = node.metadata_props.get("pkg.torch.onnx.name_scopes", "")
        if min(weight.shape) >= MIN_INT8_SIZE and ".head" not in scopes:
            names.append(node.name)
    return names


def _quantize(path: Path, nodes: list[str]) -> None:
    """Replace the weights of some linear layers by 8-bit integers."""
    quantization = import_extra("onnxruntime.quantization", "onnx")
    external = len(list(path.parent.glob(f"{path.name}*"))) > 1
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        quantization.quantize_dynamic(
            path,
            path,
            op_types_to_quantize=["MatMul", "Gemm"],
            nodes_to_quantize=nodes,
            per_channel=True,
            use_external_data_format=external,
        )
    finally:
        root.setLevel(level)
