"""The passes of an offline codec over a long utterance.

All layers of an offline model see a limited number of frames around a frame,
with two exceptions: WavLM's attention sees the whole utterance, and each focal
block needs one mean over it. So the encoder runs in windows with context, which
approximates a single pass where attention looks further. The focal blocks run
layer by layer, each with the exact mean of the whole utterance. A compressor or
decompressor of the user's own, whose layers are unknown, runs over the whole
utterance.
"""

import math
from collections.abc import Callable
from typing import Any

import torch

from speechbrain_focalcodec.long_audio.passes import Pass
from speechbrain_focalcodec.long_audio.windows import (
    WHOLE,
    Sizes,
    count_steps,
    fit_sizes,
)
from speechbrain_focalcodec.modules.bsq import to_sphere
from speechbrain_focalcodec.modules.compressor import (
    FocalDecoder,
    FocalEncoder,
    FocalLayer,
)
from speechbrain_focalcodec.stages import Convert, Stages

__all__ = ["decode_passes", "encode_passes"]


def encode_passes(
    codec: Stages, window: float | None, context: float
) -> list[Pass]:
    """Passes from waveform to tokens: the encoder, then the compressor's
    layers.

    `window` and `context`, which the encoder sees on each side of the kept
    frames, are in seconds. Raises ValueError if one is invalid, or the window
    is too short for the context.
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
    if not isinstance(compressor, FocalEncoder):

        def compress(x, lengths, means=None):
            return codec.lats_to_toks(to_sphere(compressor(x, lengths)))

        factor = math.prod(compressor.downscale_factors)
        return [*passes, _whole_pass(codec, compress, factor)]
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
    """Passes from tokens to waveform: the decompressor's layers and the
    decoder.

    The decoder runs together with the last layer. `window` is in seconds
    (unlimited if None); `convert` is that of :meth:`FocalCodec.decode`. Without
    `to_sig` the last pass returns quantized features. Raises ValueError if
    `window` is no number of seconds.
    """
    decompressor, decoder = codec.decompressor, codec.decoder
    if not isinstance(decompressor, FocalDecoder):

        def decompress(x, lengths, means=None):
            x = decompressor(codec.quantizer.toks_to_codes(x), lengths)
            if lengths is not None:
                lengths = decompressor.output_lengths(lengths)
            if convert is not None:
                x = convert(x, lengths)
            return decoder(x, lengths) if to_sig else x

        hop = math.prod(decompressor.upscale_factors)
        hop *= decoder.hop_length if to_sig else 1
        return [_whole_pass(codec, decompress, hop_out=hop)]
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
                # The refiner needs whole chunks.
                "left": -(-(left + chunk - 1) // factor),
                "right": -(-(right + chunk - 1) // factor),
                "unit": math.lcm(chunk, factor) // factor,
            }
        passes.append(_layer_pass(codec, layer, run, window, rate, **after))
        rate *= factor
    return passes


def _whole_pass(
    codec: Stages,
    run: Callable[..., torch.Tensor],
    factor: int = 1,
    hop_out: int = 1,
) -> Pass:
    """A pass over the whole utterance, with `factor` steps of input each."""
    return Pass(
        lambda x, lengths, means: codec.run_part(run, x, lengths, means, ""),
        Sizes(WHOLE),
        hop_in=factor,
        hop_out=hop_out,
        count=lambda num: -(-num // factor),
    )


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
    """A pass of a layer and the functions around it in `run`.

    A step is a frame of the block, from `factor` frames of input. `left` and
    `right` are steps that the functions after the layer see.
    """
    before, after = layer.reach
    left, right = left + before, right + after
    return Pass(
        lambda x, lengths, means: codec.run_part(run, x, lengths, means, ""),
        # The kept part is at least half of a window.
        fit_sizes(window, rate, left, right, unit, kept=left + right),
        hop_in=factor,
        hop_out=hop_out,
        count=lambda num: -(-num // factor),
        has_mean=not layer.focal_block.modulation.causal,
    )
