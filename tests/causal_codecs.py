"""Small causal codecs of every kind, for tests."""

import torch

from speechbrain_focalcodec.codec import FocalCodec

CODECS = {
    "vocos": ({}, (1, 1, 1), "Vocos"),
    "fading": ({}, (1, 1, 1), "Vocos"),
    "wavenext": ({}, (1, 1, 1), "WaveNeXt"),
    "down_scaled": ({}, (2, 1, 2), "WaveNeXt"),
    "all_options": (
        {
            "use_post_norm": True,
            "use_layerscale": True,
            "layerscale_init": 0.5,
            "normalize_modulator": True,
        },
        (1, 1, 1),
        "Vocos",
    ),
}


def make_codec(name: str, window_size: int = 12) -> FocalCodec:
    options, factors, decoder = CODECS[name]
    torch.manual_seed(2)
    focal = {"hidden_dims": [16, 16, 16], "focal_window": 5, **options}
    causal = {"causal": True, "window_size": window_size}
    config = {
        "encoder_config": {
            "hidden_dims": [8] * 7,
            "num_layers": 2,
            "dim": 16,
            "ffn_dim": 32,
            "num_heads": 2,
            "conv_pos": 8,
            "conv_pos_groups": 2,
            **causal,
        },
        "compressor_config": {
            "input_dim": 16,
            "output_dim": 6,
            "downscale_factors": factors,
            **focal,
            **causal,
        },
        "quantizer_config": {"codebook_size": 64},
        "decompressor_config": {
            "input_dim": 6,
            "output_dim": 16,
            "upscale_factors": factors[::-1],
            "last_window_size": 9,
            **focal,
            **causal,
        },
        "decoder_name": decoder,
        "decoder_config": {
            "input_dim": 16,
            "num_layers": 2,
            "dim": 16,
            "ffn_dim": 32,
            "causal": True,
            **({"fade": 60} if name == "fading" else {}),
        },
    }
    return FocalCodec.from_config(config, name=name).eval()
