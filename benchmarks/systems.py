"""Codecs whose speed is measured: this one, with and without options."""

import tempfile
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import torch

from speechbrain_focalcodec.acceleration import accelerate
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
    """A system is not available here; the message says why."""


class System:
    """A model whose speed is measured.

    Arguments
    ---------
    name : str
        Its name in options and tables.

    Attributes
    ----------
    stages : tuple of str
        Stages that can be timed. Loading may remove some.
    base : str
        Name of the same model in float32.
    counted : bool
        Whether its multiply-accumulates are counted.
    sample_rate : int
        Of the input (Hz); known after loading.
    facts : dict
        Facts for the results; known after loading.
    """

    stages: tuple[str, ...] = (WHOLE,)
    counted = False
    sample_rate: int
    facts: dict[str, Any]

    def __init__(self, name: str):
        self.name = self.base = name

    def load(self, device: torch.device) -> None:
        """Build the model in eval mode, or raise :class:`Missing`."""
        raise NotImplementedError

    def unload(self) -> None:
        """Release the model."""
        raise NotImplementedError

    def prepare(
        self, stage: str, seconds: float, batch: int
    ) -> Callable[[], Any]:
        """Make a batch of input and return a function that runs the stage."""
        raise NotImplementedError


def make_noise(
    seconds: float, batch: int, sample_rate: int, device: torch.device
) -> torch.Tensor:
    """Make noise [batch, T], always the same: speed does not depend on it."""
    generator = torch.Generator().manual_seed(0)
    shape = batch, round(seconds * sample_rate)
    return (0.1 * torch.randn(shape, generator=generator)).to(device)


class CodecSystem(System):
    """This codec, in float32 or with an option that makes it faster.

    Arguments
    ---------
    name : str
        The model's name.
    build : callable
        Builds the model.
    option : str, optional
        ``bf16``, ``int8`` or ``compile``, or two of them joined by ``+``;
        or ``onnx`` or ``onnx+int8``, the model in onnxruntime.
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
            # Too short to be timed.
            self.stages = tuple(x for x in self.stages if x != ENCODER)
        self.facts = {
            "parameters": sum(x.numel() for x in codec.parameters()),
            "sample_rate": codec.sample_rate_input,
            "option": self.option,
        }
        self.codec = accelerated(codec, self.option) if self.option else codec
        if isinstance(self.codec, OnOnnxRuntime):
            # The exported encoder gives tokens.
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
    """A codec exported to onnxruntime, with the methods of a FocalCodec.

    Arguments
    ---------
    codec : FocalCodec
        The model to export.
    int8 : bool
        Whether to store weights as 8-bit integers.
    """

    def __init__(self, codec: FocalCodec, int8: bool = False):
        # Needs onnxscript, which is optional.
        from speechbrain_focalcodec.onnx.export import export_onnx

        self.quantizer = codec.quantizer
        self.sample_rate_input = codec.sample_rate_input
        self.token_rate = codec.token_rate
        self.codebook_size = codec.codebook_size
        self.causal, self.latency = codec.causal, codec.latency
        # The sizes of its windows.
        self.config = codec.config
        self.encoder = SimpleNamespace(hop_length=codec.encoder.hop_length)
        with tempfile.TemporaryDirectory() as folder:
            export_onnx(codec, folder, int8)
            self.codec = OnnxFocalCodec(folder, threads=torch.get_num_threads())

    def parameters(self) -> Iterator[torch.Tensor]:
        """One tensor, which tells the device."""
        return iter([torch.zeros(1)])

    def stream(self) -> OnnxStreamingResynthesizer:
        """A streaming session on NumPy arrays."""
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
    """Apply an option to a model, which must not be used afterwards."""
    names = option.split("+")
    if names in (["onnx"], ["onnx", "int8"]):
        if next(codec.parameters()).device.type != "cpu":
            raise Missing("onnxruntime is measured on the CPU only")
        try:
            return OnOnnxRuntime(codec, "int8" in names)
        except (ImportError, ValueError) as error:
            raise Missing(str(error)) from error
    precisions = [name for name in names if name != "compile"]
    if len(precisions) > 1:
        raise Missing(f"{option} asks for two precisions")
    try:
        return accelerate(
            codec,
            precision=precisions[0] if precisions else None,
            compile="compile" in names,
        )
    except (ImportError, RuntimeError, ValueError) as error:
        raise Missing(str(error)) from error


def build_full() -> FocalCodec:
    """Build the full-size 50 Hz model (142 M) with random weights."""
    torch.manual_seed(0)
    return FocalCodec.from_config(
        {}, name="focalcodec_50hz, random weights"
    ).eval()


def build_mini() -> FocalCodec:
    """Load the bundled mini model."""
    return FocalCodec.from_pretrained(DEFAULT_MODEL)


MODELS: dict[str, Callable[[], FocalCodec]] = {
    "focalcodec-full": build_full,
    "focalcodec-mini": build_mini,
}


def build_full_causal() -> FocalCodec:
    """Build the full-size causal model (249 M) with random weights."""
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
    """Load the bundled causal mini model."""
    return FocalCodec.from_pretrained(DEFAULT_CAUSAL_MODEL)


CAUSAL_MODELS: dict[str, Callable[[], FocalCodec]] = {
    "focalcodec-full-causal": build_full_causal,
    "focalcodec-mini-causal": build_mini_causal,
}
