"""A stream gives what one pass gives, in every causal configuration."""

import pytest
import torch

from speechbrain_focalcodec.codec import FocalCodec
from speechbrain_focalcodec.modules.causal import StreamState

CODECS = {
    "vocos": ({}, (1, 1, 1), "Vocos"),
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


def make_codec(name: str) -> FocalCodec:
    options, factors, decoder = CODECS[name]
    torch.manual_seed(2)
    focal = {"hidden_dims": [16, 16, 16], "focal_window": 5, **options}
    causal = {"causal": True, "window_size": 12}
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
        },
    }
    return FocalCodec(config, name=name).eval()


@torch.no_grad()
@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("chunks", [1, 3])
@pytest.mark.parametrize("tail", [0, 1, 700])
def test_stream_equals_one_pass(name, chunks, tail):
    codec = make_codec(name)
    # 40 frames: the window of 12 rolls.
    sig = 0.3 * torch.randn(2, 10 * codec.chunk_length + tail)
    state = StreamState()
    toks, recs = [], []
    for chunk in sig.split(chunks * codec.chunk_length, dim=1):
        feats = codec.sig_to_feats(chunk, state=state)
        lats = codec.feats_to_lats(feats, state=state)
        toks.append(codec.lats_to_toks(lats))
        codes = codec.toks_to_codes(toks[-1])
        qfeats = codec.codes_to_qfeats(codes, state=state)
        recs.append(codec.feats_to_sig(qfeats, state=state))
    want, _ = codec.encode(sig)
    rec, _ = codec.decode(want)
    assert torch.equal(torch.cat(toks, 1), want)
    torch.testing.assert_close(torch.cat(recs, 1), rec, rtol=0, atol=1e-5)
    assert codec.latency == 80.0
