"""Every stage equals what the published implementation computed."""

import json

import pytest
import torch
from conftest import PARITY
from safetensors.torch import load_file

from speechbrain_focalcodec.codec import FocalCodec
from speechbrain_focalcodec.modules import attention
from speechbrain_focalcodec.modules.causal import StreamState

# tests/parity/README.md: the pass mark.
TOLERANCE = 1e-4

CASES = sorted(path.parent.name for path in PARITY.glob("*/case.json"))
FULL = [case for case in CASES if case.startswith("full_options")]
CAUSAL = [case for case in CASES if case.startswith("causal")]
OFFLINE = [case for case in CASES if case not in CAUSAL + FULL]
INPUTS = [(case, "a") for case in CASES]
INPUTS += [(case, "b") for case in OFFLINE + FULL]


def load(case: str) -> tuple[FocalCodec, dict[str, torch.Tensor]]:
    codec = FocalCodec.from_pretrained(PARITY / case)
    return codec, load_file(PARITY / case / "expected.safetensors")


def assert_close(got: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=0, atol=TOLERANCE)


def assert_same_toks(
    got: torch.Tensor, expected: torch.Tensor, lats: torch.Tensor
) -> None:
    sure = lats.abs().amin(-1) > TOLERANCE
    assert got.shape == expected.shape
    assert sure.float().mean() > 0.9
    assert torch.equal(got[sure], expected[sure])


def test_all_cases_are_here():
    assert len(CASES) == 10
    assert len(CAUSAL) == len(FULL) == 2


@torch.no_grad()
@pytest.mark.parametrize("case,which", INPUTS)
def test_each_stage(case, which):
    codec, expected = load(case)
    want = {
        name: expected[f"{which}.{name}"]
        for name in ("sig feats lats toks codes qfeats rec_sig".split())
    }
    feats = codec.sig_to_feats(want["sig"])
    assert_close(feats, want["feats"])
    lats = codec.feats_to_lats(want["feats"])
    assert_close(lats, want["lats"])
    assert_same_toks(codec.lats_to_toks(lats), want["toks"], want["lats"])
    assert_close(codec.lats_to_codes(want["lats"]), want["codes"])
    assert_close(codec.toks_to_codes(want["toks"]), want["codes"])
    assert torch.equal(codec.codes_to_toks(want["codes"]), want["toks"])
    qfeats = codec.codes_to_qfeats(want["codes"])
    assert_close(qfeats, want["qfeats"])
    assert_close(codec.feats_to_sig(want["qfeats"]), want["rec_sig"])
    # And the whole way, without the recorded steps in between.
    toks, tok_lengths = codec.encode(want["sig"])
    assert_same_toks(toks, want["toks"], want["lats"])
    assert tok_lengths.tolist() == [want["toks"].shape[1]]
    rec_sig, sig_lengths = codec.decode(want["toks"])
    assert_close(rec_sig, want["rec_sig"])
    assert sig_lengths.tolist() == [want["rec_sig"].shape[1]]


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_stages_joined(case):
    """With lengths, without, and with the state of a stream."""
    codec, expected = load(case)
    want = {key[2:]: x for key, x in expected.items() if key[:2] == "a."}
    assert_close(codec.codebook[want["toks"]], want["codes"])
    assert_close(codec.toks_to_qfeats(want["toks"]), want["qfeats"])
    assert_close(codec.toks_to_sig(want["toks"]), want["rec_sig"])
    assert_close(codec.codes_to_sig(want["codes"]), want["rec_sig"])
    toks = codec.sig_to_toks(want["sig"])
    assert_same_toks(toks, want["toks"], want["lats"])
    assert torch.equal(
        codec.codes_to_toks(codec.sig_to_codes(want["sig"])), toks
    )
    assert_close(codec.sig_to_qfeats(want["sig"]), codec.toks_to_qfeats(toks))
    sig = torch.cat([want["sig"], 0.1 * torch.randn_like(want["sig"])])
    lengths = torch.tensor([sig.shape[1], sig.shape[1] // 2])
    batch, num = codec.sig_to_toks(sig, lengths)
    assert torch.equal(batch[:1], toks)
    assert torch.equal(
        batch[1:, : num[1]], codec.sig_to_toks(sig[1:, : lengths[1]])
    )
    assert not batch[1, num[1] :].any()
    rec_sig, samples = codec.toks_to_sig(batch, num)
    alone = codec.toks_to_sig(batch[1:, : num[1]])
    assert samples[1] == alone.shape[1]
    assert_close(rec_sig[1:, : samples[1]], alone)
    if codec.causal:
        state = StreamState()
        chunks = want["sig"].split(codec.chunk_length, dim=1)
        qfeats = [codec.sig_to_qfeats(x, state=state) for x in chunks]
        assert_close(torch.cat(qfeats, 1), codec.toks_to_qfeats(toks))


@torch.no_grad()
@pytest.mark.parametrize("case", CAUSAL)
@pytest.mark.parametrize("chunks", [1, 3, 1000])
def test_streamed(case, chunks):
    """Chunk by chunk (or several at once), with carried state."""
    codec, expected = load(case)
    info = json.loads((PARITY / case / "case.json").read_text())
    assert codec.chunk_length == info["chunk_size"]
    assert codec.latency == info["latency_ms"]
    state = StreamState()
    toks, rec_sigs = [], []
    for sig in expected["a.sig"].split(chunks * codec.chunk_length, dim=1):
        feats = codec.sig_to_feats(sig, state=state)
        lats = codec.feats_to_lats(feats, state=state)
        toks.append(codec.lats_to_toks(lats))
        codes = codec.toks_to_codes(toks[-1])
        qfeats = codec.codes_to_qfeats(codes, state=state)
        rec_sigs.append(codec.feats_to_sig(qfeats, state=state))
    assert_same_toks(
        torch.cat(toks, 1), expected["stream.toks"], expected["a.lats"]
    )
    assert_close(torch.cat(rec_sigs, 1), expected["stream.rec_sig"])


@torch.no_grad()
@pytest.mark.parametrize("case", CAUSAL)
def test_carried_state_is_bounded(case):
    codec, expected = load(case)
    state = StreamState()
    sizes = []
    for sig in expected["a.sig"].split(codec.chunk_length, dim=1):
        codec.sig_to_feats(sig, state=state)
        sizes.append(sum(x.numel() for x in state.tensors().values()))
    assert sizes[-1] == sizes[-2]


@torch.no_grad()
@pytest.mark.parametrize(
    "case", [case for case in OFFLINE if not case.startswith("v001")]
)
def test_decoding_converted_features(case):
    codec, expected = load(case)
    assert_close(codec.feats_to_sig(expected["knn.mean"]), expected["knn.sig"])


@torch.no_grad()
def test_a_stream_ends_with_a_chunk_that_is_not_whole():
    codec, expected = load("causal_50hz")
    sig = expected["a.sig"][:, : 3 * codec.chunk_length + 700]
    state = StreamState()
    feats = [
        codec.sig_to_feats(chunk, state=state)
        for chunk in sig.split(codec.chunk_length, dim=1)
    ]
    assert_close(torch.cat(feats, 1), codec.sig_to_feats(sig))
    with pytest.raises(ValueError, match="multiple of 1280 samples.*ends"):
        codec.sig_to_feats(sig[:, :1280], state=state)


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("scores", [1, 20000])
def test_attention_in_blocks_is_the_same(case, scores, monkeypatch):
    codec, expected = load(case)
    want = codec.sig_to_feats(expected["a.sig"])
    monkeypatch.setattr(attention, "SCORES", scores)
    assert_close(codec.sig_to_feats(expected["a.sig"]), want)


@torch.no_grad()
@pytest.mark.parametrize("case", ["offline_25hz", "causal_50hz"])
def test_low_precision_runs_end_to_end(case):
    codec, expected = load(case)
    sig = expected["a.sig"][:, :9600].bfloat16()
    rec_sig = codec.bfloat16().resynthesize(sig)
    assert rec_sig.isfinite().all()
