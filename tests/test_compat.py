"""The published interface: names, calls, states and the recorded values."""

import copy
import inspect
import json
import re

import pytest
import torch
from conftest import PARITY
from safetensors.torch import load_file

import speechbrain_focalcodec.compat as focalcodec
from speechbrain_focalcodec import FocalCodec as MainCodec
from speechbrain_focalcodec.compat.bsq import BinarySphericalQuantizer
from speechbrain_focalcodec.compat.focalnet import FocalDecoder, FocalEncoder
from speechbrain_focalcodec.compat.vocos import Vocos
from speechbrain_focalcodec.compat.wavenext import WaveNeXt
from speechbrain_focalcodec.compat.wavlm import WavLM
from speechbrain_focalcodec.errors import CheckpointError, ConfigError

ROOT = PARITY.parents[1]
CASES = sorted(path.parent.name for path in PARITY.glob("*/case.json"))
SIZES = {"num_layers": 1, "dim": 16, "ffn_dim": 32, "num_heads": 2}
SIZES |= {"conv_pos": 4, "conv_pos_groups": 2, "hidden_dims": (8,) * 7}
BLOCKS = {"hidden_dims": (8, 4, 4), "focal_window": 3, "focal_factor": 2}


def load(case):
    codec = focalcodec.FocalCodec.from_pretrained(str(PARITY / case))
    return codec, load_file(PARITY / case / "expected.safetensors")


def small(causal=False, **more):
    """A codec by the published keywords."""
    flag = {"causal": causal}
    encoder = SIZES | flag | {"window_size": 8} | more
    blocks = BLOCKS | flag | {"window_size": 8}
    return focalcodec.FocalCodec(
        encoder_config=encoder,
        compressor_config={"input_dim": 16, "output_dim": 5} | blocks,
        quantizer_config={"codebook_size": 32},
        decompressor_config={"input_dim": 5, "output_dim": 16}
        | blocks
        | {"hidden_dims": (4, 4, 8), "last_window_size": 8},
        decoder_config={"input_dim": 16, "num_layers": 1, "dim": 8}
        | {"ffn_dim": 16}
        | flag,
    ).eval()


def close(got, want, atol=1e-4):
    torch.testing.assert_close(got, want, rtol=0, atol=atol)


def same_toks(got, want, lats):
    sure = lats.abs().amin(-1) > 1e-4
    assert got.shape == want.shape and torch.equal(got[sure], want[sure])


# Values


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("start", ["sig", "feats", "lats", "toks", "codes"])
def test_every_method_has_the_recorded_values(case, start):
    codec, expected = load(case)
    want = {key[2:]: x for key, x in expected.items() if key[:2] == "a."}
    want["sig_"], want["sig"] = want["sig"], want["rec_sig"]
    given = want["sig_"] if start == "sig" else want[start]
    if start == "feats":
        # The waveform of the features themselves is not recorded.
        want["sig"] = codec.decoder(given)[0]
    ways = [name for name in dir(codec) if name.startswith(f"{start}_to_")]
    assert len(ways) == {"sig": 6, "feats": 5}.get(start, 3)
    for way in ways:
        end = way.split("_to_")[1]
        got = getattr(codec, way)(given)
        if way == "sig_to_sig":
            length = given.shape[1] * codec.sample_rate_output // 16000
            assert got.shape == (1, length)
            size = min(got.shape[1], want["sig"].shape[1])
            close(got[:, :size], want["sig"][:, :size])
        elif end == "toks":
            same_toks(got, want["toks"], want["lats"])
        else:
            close(got, want[end])
    if start == "sig":
        toks, codes, rec_sig = codec(given)
        assert torch.equal(codec.codebook[toks], codes)
        close(rec_sig, codec.sig_to_sig(given), 0)
        assert codec.codebook.shape == (
            *(codec.quantizer.codebook_size, codec.quantizer.dim),
        )


@torch.no_grad()
@pytest.mark.parametrize(
    "case,kind", [("causal_50hz", list), ("causal_50hz_lookahead0", tuple)]
)
def test_states_are_passed_by_position(case, kind):
    codec, expected = load(case)
    info = json.loads((PARITY / case / "case.json").read_text())
    assert codec.causal and codec.chunk_size == info["chunk_size"]
    assert codec.latency == info["latency_ms"]
    encoder, compressor = kind(), kind()
    decoding, whole = [], []
    toks, rec_sigs, again = [], [], []
    for sig in expected["a.sig"].split(codec.chunk_size, dim=1):
        chunk, encoder, compressor = codec.sig_to_toks(
            sig, encoder, compressor, return_state=True
        )
        assert type(encoder) is type(compressor) is kind
        toks.append(chunk)
        rec_sig, *decoding = codec.toks_to_sig(
            chunk, *decoding, return_state=True
        )
        rec_sigs.append(rec_sig)
        _, _, rec_sig, *whole = codec(sig, *whole, return_state=True)
        again.append(rec_sig)
    assert len(decoding) == 2 and len(whole) == 4
    same_toks(torch.cat(toks, 1), expected["stream.toks"], expected["a.lats"])
    close(torch.cat(rec_sigs, 1), expected["stream.rec_sig"])
    close(torch.cat(again, 1), torch.cat(rec_sigs, 1))


@torch.no_grad()
def test_states_are_not_changed():
    codec, expected = load("causal_50hz")
    chunks = expected["a.sig"].split(codec.chunk_size, dim=1)
    state = []
    for sig in chunks[:40]:  # the window is full
        _, *state = codec.sig_to_lats(sig, *state, return_state=True)
    kept = copy.deepcopy(state)
    first, *_ = codec.sig_to_lats(chunks[40], *state, return_state=True)
    codec.sig_to_lats(chunks[41], *state, return_state=True)
    for one, other in zip(state, kept, strict=True):
        assert one[0].keys() == other[0].keys() and one[0]
        assert all(torch.equal(one[0][name], other[0][name]) for name in one[0])
    again, *_ = codec.sig_to_lats(chunks[40], *state, return_state=True)
    assert torch.equal(first, again)


@torch.no_grad()
def test_offline_models_have_no_state():
    codec, expected = load("offline_50hz")
    first = codec(expected["a.sig"], return_state=True)
    again = codec(expected["a.sig"], *first[3:], return_state=True)
    assert torch.equal(first[2], again[2]) and len(again) == 7
    assert codec.latency is None and not codec.causal


@torch.no_grad()
@pytest.mark.parametrize("case", ["offline_12_5hz", "causal_50hz"])
def test_an_utterance_does_not_depend_on_the_batch(case):
    codec, expected = load(case)
    sig = torch.randn(3, 16000) / 10
    length = torch.tensor([1.0, 0.5, 0.33])
    toks, codes, rec_sig = codec(sig, length=length)
    assert torch.equal(codec.sig_to_toks(sig, length=length), toks)
    rate = codec.sample_rate_output // 8000
    for i, num in enumerate([16000, 8000, 5280]):
        alone, _, rec = codec(sig[i : i + 1, :num])
        assert torch.equal(toks[i, : alone.shape[1]], alone[0])
        assert not toks[i, alone.shape[1] :].any()
        assert not codes[i, alone.shape[1] :].any()
        size = min(num * rate // 2, codec.toks_to_sig(alone).shape[1])
        close(rec_sig[i, :size], rec[0, :size])
    feats, state = codec.encoder(sig, length=length)
    close(feats, codec.sig_to_feats(sig, length=length), 0)


# Voice conversion


@torch.no_grad()
@pytest.mark.parametrize(
    "case", [case for case in CASES if case.startswith("offline")]
)
@pytest.mark.parametrize("num_splits", [1, 3])
def test_matching_sets(case, num_splits):
    codec, expected = load(case)
    frames, query = expected["knn.matching_set"], expected["knn.query"]
    found = codec.knn(query, frames, num_splits=num_splits)
    assert found.shape == (*query.shape[:-1], 4, query.shape[-1])
    close(found.mean(-2), expected["knn.mean"])
    options = {"matching_set": frames, "num_splits": num_splits}
    close(codec.feats_to_sig(query, **options), expected["knn.sig"])
    close(codec.toks_to_sig(expected["b.toks"], **options), expected["knn.sig"])
    # Continuous features, as in the published demo.
    feats = torch.cat([expected["a.feats"][0], expected["b.feats"][0]])
    sims = torch.nn.functional.normalize(query[0], dim=-1) @ (
        torch.nn.functional.normalize(feats, dim=-1).T
    )
    want = feats[sims.topk(2).indices].mean(-2)
    got = codec.codes_to_sig(
        expected["b.codes"], matching_set=feats, topk=2, num_splits=num_splits
    )
    close(got, codec.feats_to_sig(want[None]))
    assert codec.knn(query, frames[:2]).shape[-2] == 2


@torch.no_grad()
def test_output_length_crops_or_repeats_the_last_sample():
    codec, expected = load("offline_50hz")
    whole = codec.toks_to_sig(expected["a.toks"])
    short = codec.toks_to_sig(expected["a.toks"], output_length=100)
    assert torch.equal(short, whole[:, :100])
    size = whole.shape[1]
    long = codec.toks_to_sig(expected["a.toks"], output_length=size + 9)
    assert torch.equal(long[:, :size], whole)
    assert torch.equal(long[:, size:], whole[:, -1:].expand(-1, 9))


# Making, loading, saving


@pytest.mark.parametrize(
    "cls,names",
    [
        (
            WavLM,
            "hidden_dims kernel_sizes strides num_layers dim ffn_dim num_heads "
            "num_buckets max_distance max_cached_steps dropout conv_pos "
            "conv_pos_groups causal window_size lookahead_size "
            "use_flex_attention",
        ),
        (
            FocalEncoder,
            "input_dim output_dim hidden_dims downscale_factors focal_window "
            "focal_level focal_factor dropout use_post_norm use_layerscale "
            "layerscale_init tanhscale_init normalize_modulator causal "
            "window_size",
        ),
        (
            FocalDecoder,
            "input_dim output_dim hidden_dims upscale_factors focal_window "
            "focal_level focal_factor dropout use_post_norm use_layerscale "
            "layerscale_init tanhscale_init normalize_modulator causal "
            "window_size last_window_size lookahead_size",
        ),
        (BinarySphericalQuantizer, "codebook_size"),
        (
            WaveNeXt,
            "input_dim num_layers dim ffn_dim kernel_size layerscale_init "
            "hop_length causal",
        ),
        (
            Vocos,
            "input_dim num_layers dim ffn_dim kernel_size layerscale_init "
            "n_fft hop_length causal fade",
        ),
    ],
)
def test_options_have_the_published_order(cls, names):
    assert list(inspect.signature(cls).parameters) == names.split()
    with pytest.raises(TypeError, match="typo"):
        cls(typo=1)


def test_defaults_are_those_of_the_newer_version():
    table = focalcodec.codec.REGISTRY
    defaults = {
        name: inspect.signature(part).parameters for name, part in table.items()
    }
    for name in ("FocalEncoder", "FocalDecoder"):
        options = defaults[name]
        assert options["hidden_dims"].default == (1024, 1024, 1024)
        assert options["focal_window"].default == 14
        assert options["focal_factor"].default == 4
        assert options["causal"].default is False
    assert defaults["WaveNeXt"]["causal"].default is False
    quantizer = BinarySphericalQuantizer()
    assert quantizer.codebook.shape == (4096, 12)
    assert inspect.signature(focalcodec.FocalCodec).parameters[
        "decoder_name"
    ].default == ("WaveNeXt")


@torch.no_grad()
def test_parts_are_called_as_published():
    codec = small(causal=True)
    assert isinstance(codec.encoder, WavLM)
    assert isinstance(codec.compressor, FocalEncoder)
    assert isinstance(codec.decompressor, FocalDecoder)
    assert isinstance(codec.decoder, WaveNeXt)
    assert codec.encoder.chunk_size == 1280 and codec.decoder.chunk_size == 1
    assert codec.encoder.downsample_factor == 320
    assert codec.compressor.downsample_factor == 1
    assert codec.decompressor.chunk_size == 4
    assert codec.decoder.upsample_factor == 480
    assert codec.encoder.window_size == codec.compressor.window_size == 8
    sig, state = torch.randn(2, 2560), []
    chunks = []
    for chunk in sig.split(1280, dim=1):
        feats, *state = codec.encoder(chunk, *state)
        chunks.append(feats)
    close(torch.cat(chunks, 1), codec.encoder(sig)[0])
    lats, _ = codec.compressor(feats)
    toks, codes = codec.quantizer(lats)
    assert torch.equal(codec.quantizer.codes_to_toks(codes), toks)
    for wrong in (torch.ones(2), [torch.zeros(1)], "state"):
        with pytest.raises(TypeError, match="a state must be"):
            codec.sig_to_toks(sig, wrong)


def test_tanhscale_init_is_the_initial_alpha():
    compressor = FocalEncoder(
        *(8, 4, (4,), (1,)), tanhscale_init=0.7, causal=True, window_size=4
    )
    alphas = [x for n, x in compressor.named_parameters() if "alpha" in n]
    norms = [x for n, x in compressor.named_parameters() if "norm.alpha" in n]
    assert len(norms) == 2 and len(alphas) == 3
    assert all(x.item() == pytest.approx(0.7) for x in norms)


def test_an_unknown_part_is_named():
    with pytest.raises(ValueError, match="no part 'HuBERT'.*WavLM"):
        focalcodec.FocalCodec(encoder_name="HuBERT")


@torch.no_grad()
@pytest.mark.parametrize("suffix", ["", ".json"])
def test_to_pretrained_and_back(tmp_path, suffix):
    codec = small(causal=True, use_flex_attention=True)
    path = str(tmp_path / "models" / f"mine{suffix}")
    codec.to_pretrained(path)
    files = sorted(file.name for file in (tmp_path / "models").iterdir())
    assert files == ["mine.json", "mine.safetensors"]
    config = json.loads((tmp_path / "models" / "mine.json").read_text())
    assert config["encoder_config"]["use_flex_attention"] is True
    assert config["decoder_name"] == "WaveNeXt"
    loaded = focalcodec.FocalCodec.from_pretrained(path)
    assert loaded.model_id == path
    sig = torch.randn(1, 2560)
    assert torch.equal(loaded(sig)[2], codec(sig)[2])
    # The main class reads it, too.
    main = MainCodec.from_pretrained(tmp_path / "models" / "mine.json")
    close(main.sig_to_qfeats(sig), codec.sig_to_qfeats(sig))


def test_from_config_has_random_weights_and_overrides(tmp_path):
    path = tmp_path / "x.json"
    small().to_config(str(path))
    overrides = {"encoder_config.num_layers": 2, "decoder_name": "Vocos"}
    overrides["decoder_config"] = {"input_dim": 16, "dim": 8}
    codec = focalcodec.FocalCodec.from_config(
        str(path.with_suffix("")), overrides=overrides
    )
    assert len(codec.encoder.encoder.layers) == 2
    assert isinstance(codec.decoder, Vocos) and codec.sample_rate == 16000
    with pytest.raises(ConfigError, match="encoder_config.typo: unknown"):
        focalcodec.FocalCodec.from_config(
            str(path), overrides={"encoder_config.typo": 1}
        )


@torch.no_grad()
def test_overrides_of_a_pretrained_model():
    source = str(PARITY / "offline_50hz")
    overrides = {"encoder_config.dropout": 0.5, "encoder_config.causal": False}
    codec = focalcodec.FocalCodec.from_pretrained(source, overrides)
    assert codec.encoder.config["dropout"] == 0.5
    plain, expected = load("offline_50hz")
    assert torch.equal(codec(expected["a.sig"])[2], plain(expected["a.sig"])[2])
    assert all(x.requires_grad for x in codec.parameters())
    with pytest.raises(CheckpointError, match="layers.2"):
        focalcodec.FocalCodec.from_pretrained(
            source, {"encoder_config.num_layers": 3}
        )


def test_facts():
    codec, _ = load("causal_50hz")
    assert codec.info() == {
        "model_id": str(PARITY / "causal_50hz"),
        "version": focalcodec.__version__,
        "sample_rate_input": 16000,
        "sample_rate_output": 24000,
        "causal": True,
        "chunk_size": 1280,
        "latency": 80.0,
        "num_total_params": sum(x.numel() for x in codec.state_dict().values()),
    }
    with pytest.raises(RuntimeError, match="16000 Hz and gives 24000"):
        _ = codec.sample_rate
    assert load("offline_50hz")[0].sample_rate == 16000
    main = MainCodec.from_pretrained(PARITY / "causal_50hz")
    assert list(codec.state_dict()) == list(main.state_dict())


def test_torch_hub(monkeypatch):
    monkeypatch.chdir(ROOT)
    codec = torch.hub.load(
        *(str(ROOT), "focalcodec"),
        source="local",
        config="focalcodec_mini_50hz",
    )
    assert codec.model_id == "focalcodec_mini_50hz"
    main = MainCodec.from_pretrained("focalcodec_mini_50hz")
    sig = torch.randn(1, 16000)
    assert torch.equal(codec.sig_to_toks(sig), main.sig_to_toks(sig))


# Tracing


@torch.no_grad()
def test_jit_traces_what_it_can():
    codec, expected = load("offline_25hz")
    with pytest.warns(UserWarning, match="encoder: not traced: .*one shape"):
        traced = codec.jit()
    for size in (16000, 9000, 31111):
        sig = torch.randn(2, size)
        toks, _, rec_sig = traced(sig)
        want = codec(sig)
        assert torch.equal(toks, want[0])
        close(rec_sig, want[2])
    assert traced.decoder.traced and not codec.decoder.traced
    assert list(traced.state_dict()) == list(codec.state_dict())
    only = codec.jit([Vocos])
    assert only.decoder.traced and not only.compressor.traced
    causal, expected = load("causal_50hz")
    with pytest.warns(UserWarning, match="not traced: it carries") as warned:
        same = causal.jit()
    assert len(warned) == 4
    close(same(expected["a.sig"])[2], causal(expected["a.sig"])[2], 0)


# docs/migration.md


def test_the_page_on_migration_names_existing_methods():
    page = (ROOT / "docs" / "migration.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (.*?) \| (.*?) \|", page, re.MULTILINE)
    ways = {row[0]: re.findall(r"`(\w+_to_\w+)`", row[0]) for row in rows}
    assert sum(map(len, ways.values())) > 15
    for theirs, here in rows:
        for name in ways[theirs]:
            assert hasattr(focalcodec.FocalCodec, name)
            if here.startswith("the same"):
                assert hasattr(MainCodec, name)
