"""Streaming equals a single pass, in every causal configuration."""

import pytest
import torch
from causal_codecs import CODECS, make_codec

from speechbrain_focalcodec.modules.causal import StreamState


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
