"""Other codecs and encoders, to compare with this one.

They have the default sizes of `transformers` and random weights, so that
nothing is downloaded: speed does not depend on the weights.
"""

import importlib
from collections.abc import Callable
from typing import Any

import torch
from systems import ENCODER, WHOLE, Missing, System, make_noise

# WavLM-large, cut to the six layers of FocalCodec's encoder.
WAVLM_SIZES = {
    "hidden_size": 1024,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "num_hidden_layers": 6,
    "do_stable_layer_norm": True,
    "feat_extract_norm": "layer",
    "conv_bias": False,
}


class Peer(System):
    """A model of `transformers`.

    Arguments
    ---------
    name : str
        Its name in options and tables.
    family : str
        Name of its classes without ``Config`` and ``Model``.
    **sizes
        Options of its configuration, where they are not the defaults.
    """

    def __init__(self, name: str, family: str, **sizes: Any):
        super().__init__(name)
        self.family = family
        self.sizes = sizes
        self.model: Any

    def load(self, device: torch.device) -> None:
        config_class = _find(f"{self.family}Config")
        model_class = _find(f"{self.family}Model")
        torch.manual_seed(0)
        model = model_class(config_class(**self.sizes)).to(device).eval()
        self.sample_rate = getattr(model.config, "sampling_rate", 16000)
        self.facts = {
            "parameters": sum(x.numel() for x in model.parameters()),
            "sample_rate": self.sample_rate,
            "model": model_class.__name__,
            "attention": getattr(model.config, "_attn_implementation", None),
            "sizes": self.sizes or "defaults",
        }
        self.model = model

    def unload(self) -> None:
        del self.model

    def run(self, sig: torch.Tensor) -> torch.Tensor:
        """Turn a waveform [B, T] into features or a waveform."""
        raise NotImplementedError

    def prepare(
        self, stage: str, seconds: float, batch: int
    ) -> Callable[[], Any]:
        sig = make_noise(seconds, batch, self.sample_rate, self.model.device)
        return lambda: self.run(sig)


class EncoderPeer(Peer):
    """An encoder, to compare with this codec's encoder alone."""

    stages = (ENCODER,)

    def run(self, sig: torch.Tensor) -> torch.Tensor:
        return self.model(sig).last_hidden_state


class CodecPeer(Peer):
    """A codec that encodes and decodes."""

    stages = (WHOLE,)

    def run(self, sig: torch.Tensor) -> torch.Tensor:
        return self.model(sig[:, None]).audio_values


def make_peers() -> list[System]:
    """List the other models, which are not loaded yet."""
    return [
        EncoderPeer("wavlm-large-6", "WavLM", **WAVLM_SIZES),
        CodecPeer("mimi", "Mimi"),
        CodecPeer("encodec", "Encodec"),
        CodecPeer("dac", "Dac"),
    ]


def _find(name: str) -> Any:
    try:
        return getattr(importlib.import_module("transformers"), name)
    except ImportError as error:
        raise Missing(
            "transformers cannot be imported: pip install "
            f'"speechbrain_focalcodec[benchmark]" ({error})'
        ) from error
    except (AttributeError, RuntimeError) as error:
        raise Missing(f"this transformers has no {name}") from error
