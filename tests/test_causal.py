"""Carried state gives what one pass gives, in every causal configuration."""

import pytest
import torch
from causal_codecs import CODECS, make_codec
from torch.nn import functional as F

from speechbrain_focalcodec.modules.causal import StepState, StreamState
from speechbrain_focalcodec.streaming.direction import decoding, encoding


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


@torch.no_grad()
@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("window_size", [12, 160])
@pytest.mark.parametrize("tail", [0, 700])
def test_a_step_of_plain_tensors_is_the_same(name, window_size, tail):
    codec = make_codec(name, window_size)
    sig = 0.3 * torch.randn(1, 60 * codec.chunk_length + tail)
    want, _ = codec.encode(sig)
    rec, _ = codec.decode(want)
    frames = codec.chunk_length // 320
    for direction, x, result in (
        (encoding(codec), sig, want),
        (decoding(codec), want, rec),
    ):
        kept = direction.start()
        names = kept.keys()
        outputs = []
        for i, chunk in enumerate(x.split(direction.chunk_length, dim=1)):
            length = chunk.shape[1]
            chunk = F.pad(chunk, (0, direction.chunk_length - length))
            state = StepState(kept, torch.tensor([i * frames]))
            y, lengths = direction.step(chunk, torch.tensor([length]), state)
            outputs.append(y[:, : int(lengths)])
            kept = state.tensors()
            assert kept.keys() == names
        got = torch.cat(outputs, dim=1)
        torch.testing.assert_close(got, result, rtol=0, atol=1e-4)
