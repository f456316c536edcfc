"""Codecs with absent parts."""

import copy
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from speechbrain_focalcodec import FocalCodec
from speechbrain_focalcodec.errors import CheckpointError, FocalCodecError
from speechbrain_focalcodec.inference import PretrainedFocalCodec

PARITY = Path(__file__).parent / "parity"
CASES = ["offline_25hz", "v001_50hz", "causal_50hz"]
DECODER = ("decompressor", "decoder")
ENCODER = ("encoder", "compressor")
FACTS = (
    "sample_rate_input sample_rate_output token_rate hop_length bitrate "
    "output_hop_length codebook_size causal chunk_length latency fingerprint"
).split()


@pytest.fixture(params=CASES)
def case(request):
    return PARITY / request.param


@torch.no_grad()
def test_a_decoder_needs_no_encoder(case):
    whole = FocalCodec.from_pretrained(case)
    codec = FocalCodec.from_pretrained(case, parts=DECODER)
    toks = load_file(case / "expected.safetensors")["a.toks"]
    for window in (1.0, None):
        rec_sig, lengths = codec.decode(toks, window=window)
        expected, _ = whole.decode(toks, window=window)
        assert torch.equal(rec_sig, expected)
        assert lengths.tolist() == [rec_sig.shape[1]]
    assert torch.equal(
        torch.cat(list(codec.decode_stream(toks[0]))),
        torch.cat(list(whole.decode_stream(toks[0]))),
    )
    names = {name.partition(".")[0] for name in codec.state_dict()}
    assert names == set(DECODER)


@torch.no_grad()
def test_an_encoder_needs_no_decoder(case):
    whole = FocalCodec.from_pretrained(case)
    codec = FocalCodec.from_pretrained(case, parts=ENCODER)
    sig = load_file(case / "expected.safetensors")["a.sig"]
    assert torch.equal(codec.encode(sig)[0], whole.encode(sig)[0])
    feats = whole.sig_to_feats(sig)
    encoder = FocalCodec.from_pretrained(case, parts=["encoder"])
    assert torch.equal(encoder.sig_to_feats(sig), feats)


@pytest.mark.parametrize("parts", [DECODER, ENCODER, ("quantizer",)])
def test_facts_are_those_of_the_whole_model(case, parts):
    whole = FocalCodec.from_pretrained(case)
    codec = FocalCodec.from_pretrained(case, parts=parts)
    for fact in FACTS:
        assert getattr(codec, fact) == getattr(whole, fact), fact
    if parts == ENCODER:
        assert codec.num_tokens(12345) == whole.num_tokens(12345)


def test_a_changed_part_changes_the_fingerprint(case):
    codec = FocalCodec.from_pretrained(case, parts=DECODER)
    before = codec.fingerprint
    with torch.no_grad():
        next(codec.decoder.parameters()).add_(1)
    assert codec.fingerprint != before


def test_a_whole_model_no_longer_needs_its_folder(tmp_path):
    whole = FocalCodec.from_pretrained(PARITY / "offline_50hz")
    folder = tmp_path / "model"
    whole.save_pretrained(folder)
    codec = FocalCodec.from_pretrained(folder)
    some = FocalCodec.from_pretrained(folder, parts=DECODER)
    shutil.rmtree(folder)
    assert codec.fingerprint == whole.fingerprint
    with pytest.raises(CheckpointError, match="model.safetensors: not found"):
        _ = some.fingerprint
    built = FocalCodec.from_config(whole.config, parts=DECODER)
    with pytest.raises(FocalCodecError, match="made without its encoder, co"):
        _ = built.fingerprint


def test_missing_parts_are_named():
    codec = FocalCodec.from_pretrained("focalcodec_mini_50hz", parts=DECODER)
    assert codec.parts == ("quantizer", *DECODER)
    message = (
        "focalcodec_mini_50hz was loaded without its encoder; it has "
        "quantizer, decompressor, decoder: load it with encoder among its"
    )
    for call in (
        lambda: codec.encode(torch.zeros(1, 16000)),
        lambda: codec.sig_to_feats(torch.zeros(1, 16000)),
        lambda: codec(torch.zeros(1, 16000)),
        lambda: codec.encoder,
    ):
        with pytest.raises(FocalCodecError, match=message):
            call()
    with pytest.raises(FocalCodecError, match="without its compressor"):
        codec.feats_to_lats(torch.zeros(1, 5, 80))
    assert not hasattr(codec, "encoder") and hasattr(codec, "decoder")
    assert copy.deepcopy(codec).parts == codec.parts
    encoder = FocalCodec.from_pretrained("focalcodec_mini_50hz", parts=ENCODER)
    toks = torch.zeros(1, 50).long()
    with pytest.raises(FocalCodecError, match="without its decompressor"):
        encoder.decode(toks)


def test_a_model_with_absent_parts_is_not_saved(tmp_path):
    codec = FocalCodec.from_pretrained("focalcodec_mini_50hz", parts=DECODER)
    with pytest.raises(FocalCodecError, match="without its encoder"):
        codec.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("parts", [(), ("decodr",), "decoder"])
def test_parts_are_checked(parts):
    with pytest.raises(ValueError, match="parts must be some of encoder, com"):
        FocalCodec.from_pretrained("focalcodec_mini_50hz", parts=parts)


def test_the_whole_file_is_checked(tmp_path):
    """Before weights are read, as a file of another model would be noticed."""
    for name in ("config.json", "model.safetensors"):
        shutil.copy(PARITY / "offline_50hz" / name, tmp_path)
    path = tmp_path / "config.json"
    text = path.read_text().replace('"ffn_dim": 64', '"ffn_dim": 65')
    path.write_text(text)
    with pytest.raises(CheckpointError, match="wrong shape: encoder"):
        FocalCodec.from_pretrained(tmp_path, parts=DECODER)


@pytest.mark.parametrize("part", ["encoder", "quantizer"])
def test_a_part_without_weights_is_loaded(part):
    """A log-mel encoder and a quantizer have none."""
    model = PretrainedFocalCodec.from_pretrained(
        "focalcodec_mini_50hz", parts=(part,), run_opts={"device": "cpu"}
    )
    assert model.codec.device == torch.device("cpu")


def test_the_speechbrain_interface_loads_parts():
    model = PretrainedFocalCodec.from_pretrained(
        PARITY / "offline_50hz", parts=DECODER, run_opts={"device": "cpu"}
    )
    wavs, _ = model.decode_batch(torch.zeros(2, 10).long())
    assert wavs.shape[0] == 2
    with pytest.raises(FocalCodecError, match="without its encoder"):
        model.encode_batch(torch.zeros(1, 16000))
