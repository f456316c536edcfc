"""Base classes of the five parts of a codec.

A part of your own derives from the class of its role and has the attributes
listed there; see docs/architecture.md.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

__all__ = ["Compressor", "Decoder", "Decompressor", "Encoder", "Part"]


class Part(nn.Module):
    """A part of a codec. It remembers its options.

    Attributes
    ----------
    options : dict
        Arguments of the constructor by name, without defaults: the content of
        `config.json` and `hyperparams.yaml`.
    causal : bool
        Whether no output depends on later input.

    Example
    -------
    >>> class Scale(Part):
    ...     def __init__(self, factor=1.0, offset=0.0):
    ...         super().__init__()
    >>> Scale(2.0).options
    {'factor': 2.0}
    """

    options: dict[str, Any]
    causal: bool = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" in cls.__dict__:
            cls.__init__ = _keep_options(cls.__init__)  # type: ignore[method-assign]


def _keep_options(init: Callable[..., None]) -> Callable[..., None]:
    signature = inspect.signature(init)

    @functools.wraps(init)
    def wrapper(self: Part, *args: Any, **kwargs: Any) -> None:
        # Those of the outermost class, which may call its base with others.
        if "options" not in self.__dict__:
            _, *bound = signature.bind(self, *args, **kwargs).arguments.items()
            options: dict[str, Any] = {}
            for name, value in bound:
                kind = signature.parameters[name].kind
                options |= value if kind is kind.VAR_KEYWORD else {name: value}
            self.__dict__["options"] = options
        init(self, *args, **kwargs)

    return wrapper


class Encoder(Part):
    """Waveform [B, T] to features [B, F, C].

    Called with ``(sig, lengths=None, state=None)``.

    Attributes
    ----------
    sample_rate : int
        Sample rate of the waveform (Hz).
    hop_length : int
        Samples per frame.
    output_dim : int
        Channels of the features.
    chunk : int
        Causal only: frames that see each other.
    margin : int
        Frames next to a cut that depend on input beyond it.
    overhang : int
        Samples that a frame needs beyond its own hop.
    """

    sample_rate: int
    hop_length: int
    output_dim: int
    chunk: int = 1
    margin: int = 0
    overhang: int = 0

    def output_lengths(self, lengths: torch.Tensor) -> torch.Tensor:
        """Number of frames for numbers of samples, int64 [B]."""
        return -(-lengths // self.hop_length)


class Compressor(Part):
    """Features [B, F, C] to latents [B, N, d], not yet on the sphere.

    Called with ``(feats, lengths=None, state=None)``; offline, with the whole
    utterance.

    Attributes
    ----------
    input_dim, output_dim : int
        Channels of the features; dimensions of the latents.
    downscale_factors : sequence of int
        Their product is the number of frames per latent.
    """

    input_dim: int
    output_dim: int
    downscale_factors: tuple[int, ...]

    def output_lengths(self, lengths: torch.Tensor) -> torch.Tensor:
        """Number of latents for numbers of frames, int64 [B]."""
        for factor in self.downscale_factors:
            lengths = -(-lengths // factor)
        return lengths


class Decompressor(Part):
    """Codes [B, N, d] to quantized features [B, F, C].

    Called with ``(codes, lengths=None, state=None)``; offline, with the whole
    utterance.

    Attributes
    ----------
    input_dim, output_dim : int
        Dimensions of the codes; channels of the features.
    upscale_factors : sequence of int
        Their product is the number of frames per code.
    chunk : int
        Causal only: frames that see each other.
    """

    input_dim: int
    output_dim: int
    upscale_factors: tuple[int, ...]
    chunk: int = 1

    def output_lengths(self, lengths: torch.Tensor) -> torch.Tensor:
        """Number of frames for numbers of codes, int64 [B]."""
        for factor in self.upscale_factors:
            lengths = lengths * factor
        return lengths


class Decoder(Part):
    """Features [B, F, C] to a waveform [B, F * hop_length].

    Called with ``(feats, lengths=None, state=None)``.

    Attributes
    ----------
    input_dim : int
        Channels of the features.
    hop_length : int
        Samples per frame.
    reach : (int, int)
        Frames that a sample depends on before and after its own.
    """

    input_dim: int
    hop_length: int
    reach: tuple[int, int] = (0, 0)

    def output_lengths(self, lengths: torch.Tensor) -> torch.Tensor:
        """Number of samples for numbers of frames, int64 [B]."""
        return lengths * self.hop_length
