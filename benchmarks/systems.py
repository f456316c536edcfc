"""What the benchmark of speed compares, and this codec as such systems."""

import importlib
import tempfile
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import torch

from speechbrain_focalcodec.codec import FocalCodec
from speechbrain_focalcodec.model_files import (
    DEFAULT_CAUSAL_MODEL,
    DEFAULT_MODEL,
)
from speechbrain_focalcodec.onnx.runtime import OnnxFocalCodec
from speechbrain_focalcodec.onnx.sessions import OnnxStreamingResynthesizer

ENCODER = "encoder alone"
WHOLE = "encode+decode"


class Missing(Exception):
    """A system cannot be had here; the message says why."""


class System:
    """Something whose speed can be measured.

    Arguments
    ---------
    name : str
        What it is called in options and tables.

    Attributes
    ----------
    stages : tuple of str
        What can be timed; fewer may be left once it is loaded.
    base : str
        The system that does the same work in plain float32.
    counted : bool
        Whether its work is to be counted.
    sample_rate : int
        Of the input (Hz); known once it is loaded.
    facts : dict
        For the results; known once it is loaded.
    """

    stages: tuple[str, ...] = (WHOLE,)
    counted = False
    sample_rate: int
    facts: dict[str, Any]

    def __init__(self, name: str):
        self.name = self.base = name

    def load(self, device: torch.device) -> None:
        """Build the model, in eval mode.

        Arguments
        ---------
        device : torch.device
            Where to put it.

        Raises
        ------
        Missing
            If it cannot be had here.
        """
        raise NotImplementedError

    def unload(self) -> None:
        """Forget the model."""
        raise NotImplementedError

    def prepare(
        self, stage: str, seconds: float, batch: int
    ) -> Callable[[], Any]:
        """Make the input of a stage.

        Arguments
        ---------
        stage : str
            One of `stages`.
        seconds : float
            Length of each item.
        batch : int
            Items.

        Returns
        -------
        callable
            Runs the stage on that input.
        """
        raise NotImplementedError


def make_noise(
    seconds: float, batch: int, sample_rate: int, device: torch.device
) -> torch.Tensor:
    """Make noise: what is in a signal does not change the work.

    Arguments
    ---------
    seconds : float
        Length of each item.
    batch : int
        Items.
    sample_rate : int
        In Hz.
    device : torch.device
        Where to put it.

    Returns
    -------
    torch.Tensor
        Waveform [batch, T], the same at each call.
    """
    generator = torch.Generator().manual_seed(0)
    shape = batch, round(seconds * sample_rate)
    return (0.1 * torch.randn(shape, generator=generator)).to(device)


class CodecSystem(System):
    """This codec, plain or with an option that makes it faster.

    Arguments
    ---------
    name : str
        What the model is called.
    build : callable
        Gives the model.
    option : str, optional
        ``bf16``, ``int8`` or ``compile``, or two of them joined by ``+``;
        or ``onnx`` or ``onnx+int8``, the model exported to onnxruntime.
    """

    stages = (ENCODER, "encode", "decode", WHOLE)

    def __init__(
        self,
        name: str,
        build: Callable[[], FocalCodec],
        option: str | None = None,
    ):
        super().__init__(f"{name} {option}" if option else name)
        self.base = name
        self.option = option
        self.counted = option is None
        self.build = build
        self.codec: Any

    def load(self, device: torch.device) -> None:
        codec = self.build().to(device).eval().requires_grad_(False)
        self.sample_rate = codec.sample_rate_input
        if codec.config.encoder_name == "LogMel":
            # Is done before it can be timed.
            self.stages = tuple(x for x in self.stages if x != ENCODER)
        self.facts = {
            "parameters": sum(x.numel() for x in codec.parameters()),
            "sample_rate": codec.sample_rate_input,
            "option": self.option,
        }
        self.codec = accelerated(codec, self.option) if self.option else codec
        if isinstance(self.codec, OnOnnxRuntime):
            # Its encoder ends with tokens.
            self.stages = tuple(x for x in self.stages if x != ENCODER)

    def unload(self) -> None:
        del self.codec

    def prepare(
        self, stage: str, seconds: float, batch: int
    ) -> Callable[[], Any]:
        codec = self.codec
        device = next(codec.parameters()).device
        if stage == "decode":
            shape = batch, max(1, round(seconds * codec.token_rate))
            toks = torch.randint(codec.codebook_size, shape).to(device)
            return lambda: codec.decode(toks)
        sig = make_noise(seconds, batch, self.sample_rate, device)
        methods = {
            ENCODER: "sig_to_feats",
            "encode": "encode",
            WHOLE: "resynthesize",
        }
        run = getattr(codec, methods[stage])
        return lambda: run(sig)


class OnOnnxRuntime:
    """A codec on onnxruntime that takes and gives tensors, on the CPU.

    Arguments
    ---------
    codec : FocalCodec
        The model to export.
    int8 : bool
        Whether its weights are to be 8-bit integers.
    """

    def __init__(self, codec: FocalCodec, int8: bool = False):
        export = importlib.import_module("speechbrain_focalcodec.onnx.export")
        self.quantizer = codec.quantizer
        self.sample_rate_input = codec.sample_rate_input
        self.token_rate = codec.token_rate
        self.codebook_size = codec.codebook_size
        self.causal, self.latency = codec.causal, codec.latency
        # What tells when the windows of a stream are full.
        self.config = codec.config
        self.encoder = SimpleNamespace(hop_length=codec.encoder.hop_length)
        with tempfile.TemporaryDirectory() as folder:
            export.export_onnx(codec, folder, int8)
            self.codec = OnnxFocalCodec(folder, threads=torch.get_num_threads())

    def parameters(self) -> Iterator[torch.Tensor]:
        """Something that tells the device, as a module's do."""
        return iter([torch.zeros(1)])

    def stream(self) -> OnnxStreamingResynthesizer:
        """A session that takes and gives arrays."""
        return OnnxStreamingResynthesizer(self.codec)

    def encode(self, sig: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Waveform [B, T] to tokens and their lengths."""
        toks, lengths = self.codec.encode(sig.numpy())
        return torch.from_numpy(toks), torch.from_numpy(lengths)

    def decode(self, toks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens [B, N] to waveform and its lengths."""
        sig, lengths = self.codec.decode(toks.numpy())
        return torch.from_numpy(sig), torch.from_numpy(lengths)

    def resynthesize(self, sig: torch.Tensor) -> torch.Tensor:
        """Waveform [B, T] to tokens and back."""
        return torch.from_numpy(self.codec.resynthesize(sig.numpy()))


def accelerated(codec: FocalCodec, option: str) -> Any:
    """Apply an option to a model.

    Arguments
    ---------
    codec : FocalCodec
        The model; do not use it afterwards.
    option : str
        See :class:`CodecSystem`.

    Returns
    -------
    FocalCodec or OnOnnxRuntime
        The faster model.

    Raises
    ------
    Missing
        If the option cannot be had here.
    """
    names = option.split("+")
    if names in (["onnx"], ["onnx", "int8"]):
        if next(codec.parameters()).device.type != "cpu":
            raise Missing("onnxruntime is measured on the CPU alone")
        try:
            return OnOnnxRuntime(codec, "int8" in names)
        except (ImportError, ValueError) as error:
            raise Missing(str(error)) from error
    precisions = [name for name in names if name != "compile"]
    if len(precisions) > 1:
        raise Missing(f"{option} asks for two precisions")
    try:
        acceleration = importlib.import_module(
            "speechbrain_focalcodec.acceleration"
        )
        return acceleration.accelerate(
            codec,
            precision=precisions[0] if precisions else None,
            compile="compile" in names,
        )
    except (ImportError, RuntimeError, ValueError) as error:
        raise Missing(str(error)) from error


def build_full() -> FocalCodec:
    """Build the full-size 50 Hz model, with random weights.

    Returns
    -------
    FocalCodec
        142 M parameters, the same at each call.
    """
    torch.manual_seed(0)
    return FocalCodec.from_config(
        {}, name="focalcodec_50hz, random weights"
    ).eval()


def build_mini() -> FocalCodec:
    """Load the mini model.

    Returns
    -------
    FocalCodec
        The trained model that is bundled.
    """
    return FocalCodec.from_pretrained(DEFAULT_MODEL)


MODELS: dict[str, Callable[[], FocalCodec]] = {
    "focalcodec-full": build_full,
    "focalcodec-mini": build_mini,
}


def build_full_causal() -> FocalCodec:
    """Build the full-size causal model of 4096 codes, with random weights.

    Returns
    -------
    FocalCodec
        249 M parameters, the same at each call.
    """
    torch.manual_seed(0)
    config = {
        "encoder_config": {"causal": True},
        "compressor_config": {"causal": True, "output_dim": 12},
        "quantizer_config": {"codebook_size": 4096},
        "decompressor_config": {"causal": True, "input_dim": 12},
        "decoder_name": "WaveNeXt",
    }
    name = "focalcodec_50hz_4k_causal, random weights"
    return FocalCodec.from_config(config, name=name).eval()


def build_mini_causal() -> FocalCodec:
    """Load the mini causal model.

    Returns
    -------
    FocalCodec
        The trained model that is bundled.
    """
    return FocalCodec.from_pretrained(DEFAULT_CAUSAL_MODEL)


CAUSAL_MODELS: dict[str, Callable[[], FocalCodec]] = {
    "focalcodec-full-causal": build_full_causal,
    "focalcodec-mini-causal": build_mini_causal,
}
