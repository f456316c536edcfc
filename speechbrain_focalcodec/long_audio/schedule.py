"""The passes that an offline codec takes over a long utterance.

All parts of an offline model look at some frames around a frame, but for two:
WavLM's attention sees the whole utterance, and each focal block takes one mean
over it. The encoder therefore runs by windows that see some context: near to a
single pass where attention looks further, equal to it otherwise. The focal
blocks run layer by layer, each with the exact mean of the whole utterance.
"""

import math
from collections.abc import Callable
from typing import Any

import torch

from speechbrain_focalcodec.long_audio.passes import Pass
from speechbrain_focalcodec.long_audio.windows import count_steps, fit_sizes
from speechbrain_focalcodec.modules.bsq import to_sphere
from speechbrain_focalcodec.modules.compressor import FocalLayer
from speechbrain_focalcodec.stages import Convert, Stages

__all__ = ["decode_passes", "encode_passes"]


def encode_passes(
    codec: Stages, window: float | None, context: float
) -> list[Pass]:
    """Waveform to tokens: the encoder, then the compressor's layers.

    Arguments
    ---------
    codec : Stages
        An offline model.
    window : float, optional
        Length of a window (s); None for as long as it takes.
    context : float
        What the encoder sees on each side of what is kept (s).

    Returns
    -------
    list of Pass
        The first takes samples, the last gives tokens.

    Raises
    ------
    ValueError
        If an argument is no number of seconds, or the window is too short.

    Example
    -------
    >>> from speechbrain_focalcodec.codec import FocalCodec
    >>> codec = FocalCodec.from_pretrained("focalcodec_mini_50hz")
    >>> [step.sizes for step in encode_passes(codec, 30.0, 2.0)][:2]
    [Sizes(size=1500, left=100, right=100, unit=1), \
Sizes(size=1500, left=7, right=7, unit=1)]
    """
    encoder, compressor = codec.encoder, codec.compressor
    rate = codec.sample_rate_input / encoder.hop_length
    frames = math.ceil(count_steps("context", context, rate))
    frames = max(frames, encoder.margin)
    # A causal encoder before an offline compressor attends by chunks.
    sizes = fit_sizes(window, rate, frames, frames, encoder.chunk)
    if window is not None and window <= 2 * context:
        raise ValueError(
            f"window must be longer than twice the context, {context} "
            f"seconds on each side, got {window}"
        )
    passes = [
        Pass(
            lambda sig, lengths, means: codec.run_part(
                encoder, sig, lengths, means, "encoder"
            ),
            sizes,
            hop_in=encoder.hop_length,
            overhang=encoder.overhang,
            count=lambda num: int(encoder.output_lengths(torch.tensor(num))),
        )
    ]
    last = len(compressor.layers) - 1
    for i, layer in enumerate(compressor.layers):

        def run(x, lengths, means=None, layer=layer, i=i):
            x = layer(x, lengths, means)
            if i < last:
                return x
            return codec.lats_to_toks(to_sphere(compressor.out_proj(x)))

        factor = layer.downscale.factor
        rate /= factor
        passes.append(_layer_pass(codec, layer, run, window, rate, factor))
    return passes


def decode_passes(
    codec: Stages,
    window: float | None,
    convert: Convert | None = None,
    to_sig: bool = True,
) -> list[Pass]:
    """Tokens to waveform: the decompressor's layers, then the decoder.

    The decoder runs together with the last layer.

    Arguments
    ---------
    codec : Stages
        An offline model.
    window : float, optional
        Length of a window (s); None for as long as it takes.
    convert : callable, optional
        What quantized features go through before the decoder, frame by frame:
        (features [B, T, C], frames int64 [B] or None) -> features.
    to_sig : bool
        Whether to decode; else the last pass gives quantized features.

    Returns
    -------
    list of Pass
        The first takes tokens, the last gives samples.

    Raises
    ------
    ValueError
        If `window` is no number of seconds.

    Example
    -------
    >>> from speechbrain_focalcodec.codec import FocalCodec
    >>> codec = FocalCodec.from_pretrained("focalcodec_mini_50hz")
    >>> [step.sizes for step in decode_passes(codec, 30.0)][:1]
    [Sizes(size=1500, left=7, right=7, unit=1)]
    """
    decompressor, decoder = codec.decompressor, codec.decoder
    refiner = decompressor.refiner
    last = len(decompressor.layers) - 1
    rate = codec.token_rate
    passes = []
    for i, (layer, factor) in enumerate(
        zip(decompressor.layers, decompressor.upscale_factors, strict=True)
    ):

        def run(x, lengths, means=None, layer=layer, factor=factor, i=i):
            if i == 0:
                x = decompressor.project(codec.quantizer.toks_to_codes(x))
            x = layer(x, lengths, means)
            if i < last:
                return x
            if lengths is not None:
                lengths = lengths * factor
            if refiner is not None:
                x = refiner(x, lengths)
            if convert is not None:
                x = convert(x, lengths)
            return decoder(x, lengths) if to_sig else x

        after: dict[str, Any] = {"hop_out": factor}
        if i == last:
            chunk = 1 if refiner is None else refiner.chunk
            left, right = decoder.reach if to_sig else (0, 0)
            after = {
                "hop_out": factor * (decoder.hop_length if to_sig else 1),
                # The refiner sees whole chunks.
                "left": -(-(left + chunk - 1) // factor),
                "right": -(-(right + chunk - 1) // factor),
                "unit": math.lcm(chunk, factor) // factor,
            }
        passes.append(_layer_pass(codec, layer, run, window, rate, **after))
        rate *= factor
    return passes


def _layer_pass(
    codec: Stages,
    layer: FocalLayer,
    run: Callable[..., torch.Tensor],
    window: float | None,
    rate: float,
    factor: int = 1,
    left: int = 0,
    right: int = 0,
    unit: int = 1,
    hop_out: int = 1,
) -> Pass:
    """A layer, and what `run` does around it; a step is a frame of the block.

    `factor` frames of input make one; `left` and `right` are steps that what
    comes after the layer sees.
    """
    before, after = layer.reach
    left, right = left + before, right + after
    return Pass(
        lambda x, lengths, means: codec.run_part(run, x, lengths, means, ""),
        # At least half of a window is kept.
        fit_sizes(window, rate, left, right, unit, kept=left + right),
        hop_in=factor,
        hop_out=hop_out,
        count=lambda num: -(-num // factor),
        has_mean=not layer.focal_block.modulation.causal,
    )
