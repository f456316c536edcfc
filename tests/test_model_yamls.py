"""The model YAMLs: each release has its published configuration."""

import json
from io import StringIO
from pathlib import Path

import pytest
import torch
from hyperpyyaml import load_hyperpyyaml, resolve_references
from own_script import read_yaml
from ruamel.yaml import YAML

from speechbrain_focalcodec.codec import FocalCodec
from speechbrain_focalcodec.config import CodecConfig, read_config
from speechbrain_focalcodec.hub import RELEASES
from speechbrain_focalcodec.parts import ROLES

ROOT = Path(__file__).parents[1]
MODELS = sorted((ROOT / "hparams" / "model").glob("*.yaml"))
STAGES = sorted((ROOT / "hparams" / "train").glob("*.yaml"))

# token rate (Hz), bits, bitrate (kbit/s), latency (ms), output (Hz),
# millions of parameters
PUBLISHED = {
    "focalcodec_50hz": (50.0, 13, 0.65, None, 16000, 142),
    "focalcodec_25hz": (25.0, 13, 0.325, None, 16000, 144),
    "focalcodec_12_5hz": (12.5, 13, 0.1625, None, 16000, 145),
    "focalcodec_50hz_2k_causal": (50.0, 11, 0.55, 80.0, 24000, 249),
    "focalcodec_50hz_4k_causal": (50.0, 12, 0.6, 80.0, 24000, 249),
    "focalcodec_50hz_65k_causal": (50.0, 16, 0.8, 80.0, 24000, 249),
}
DOWN = {
    "focalcodec_25hz": ((2, 1, 1), (1, 1, 2)),
    "focalcodec_12_5hz": ((2, 2, 1), (1, 2, 2)),
}
# Of any release, by the way that a stage's YAML has, too.
SMALL = {
    "encoder": {
        "hidden_dims": [8] * 7,
        "num_layers": 2,
        "dim": 16,
        "ffn_dim": 32,
        "num_heads": 2,
        "conv_pos": 8,
        "conv_pos_groups": 2,
    },
    "compressor": {"input_dim": 16, "hidden_dims": [16, 16, 16]},
    "decompressor": {"output_dim": 16, "hidden_dims": [16, 16, 16]},
    "decoder": {
        "input_dim": 16,
        "num_layers": 2,
        "dim": 16,
        "ffn_dim": 32,
    },
}

each_model = pytest.mark.parametrize("path", MODELS, ids=lambda p: p.stem)
each_release = pytest.mark.parametrize("name", PUBLISHED)


def path_of(name):
    return ROOT / "hparams" / "model" / f"{name}.yaml"


def build(name, overrides=None):
    """Build a model YAML's codec, with options of its own."""
    with open(path_of(name), encoding="utf-8") as stream:
        return load_hyperpyyaml(stream, overrides)["codec"]


def build_without_weights(name):
    with torch.device("meta"):
        return build(name)


def causal_config(bits):
    """The streaming releases, from the defaults of the schema."""
    return {
        "encoder_config": {"causal": True},
        "compressor_config": {"causal": True, "output_dim": bits},
        "quantizer_config": {"codebook_size": 2**bits},
        "decompressor_config": {"causal": True, "input_dim": bits},
        "decoder_name": "WaveNeXt",
    }


def offline_config(down, up):
    return {
        "compressor_config": {"downscale_factors": down},
        "decompressor_config": {"upscale_factors": up},
    }


def test_each_release_has_a_yaml():
    assert {f"lucadellalib/{name}" for name in PUBLISHED} == set(RELEASES)
    assert {path.stem for path in MODELS} >= set(PUBLISHED)


@each_model
def test_a_yaml_wires_five_modules(path):
    with open(path, encoding="utf-8") as stream:
        tree = YAML(typ="rt").load(resolve_references(stream))
    assert list(tree) == [*ROLES, "codec"]
    codec = tree["codec"]
    assert codec.tag.value == "!new:speechbrain_focalcodec.codec.FocalCodec"
    assert set(codec) == {"name", *ROLES} and codec["name"] == path.stem


@each_release
def test_a_release_is_as_published(name):
    rate, bits, kbps, latency, output, millions = PUBLISHED[name]
    codec = build_without_weights(name)
    assert isinstance(codec, FocalCodec) and codec.name == name
    assert (codec.sample_rate_input, codec.sample_rate_output) == (
        16000,
        output,
    )
    assert codec.token_rate == rate
    assert codec.quantizer.dim == bits and codec.codebook_size == 2**bits
    assert codec.bitrate == pytest.approx(1000 * kbps)
    assert codec.latency == latency and codec.causal == (latency is not None)
    num_parameters = sum(weight.numel() for weight in codec.parameters())
    assert round(num_parameters / 1e6) == millions


@each_release
def test_a_release_has_the_options_of_the_schema(name):
    _, bits, _, latency, *_ = PUBLISHED[name]
    if latency:
        expected = causal_config(bits)
    else:
        expected = offline_config(*DOWN.get(name, ((1, 1, 1), (1, 1, 1))))
    codec = build_without_weights(name)
    expected = CodecConfig.parse(expected)
    assert codec.config.model_dump() == expected.model_dump()


@each_release
def test_a_release_is_written_with_the_published_keys(name, parity, tmp_path):
    codec = build(name, SMALL)
    codec.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    causal = PUBLISHED[name][3] is not None
    case = parity / ("causal_50hz" if causal else "offline_50hz")
    published = json.loads((case / "config.json").read_text())
    assert written.keys() == published.keys()
    for key, value in published.items():
        if isinstance(value, dict):
            # How the published code caches positions; nothing here needs it.
            keys = value.keys() - {"max_cached_steps"}
            assert written[key].keys() == keys, key
        else:
            assert written[key] == value
    assert read_config(tmp_path / "config.json") == codec.config


@each_release
def test_a_release_of_reduced_size_codes(name):
    rate, bits, _, _, output, _ = PUBLISHED[name]
    codec = build(name, SMALL).eval()
    lengths = torch.tensor([32000, 16000])
    with torch.no_grad():
        toks, tok_lengths = codec.encode(0.1 * torch.randn(2, 32000), lengths)
        _, rec_lengths = codec.decode(toks, tok_lengths)
    seconds = lengths / 16000
    # A convolution without padding loses the end of the last frame.
    assert ((seconds * rate - tok_lengths).abs() <= 1).all()
    assert 0 <= toks.min() and toks.max() < 2**bits
    assert torch.equal(rec_lengths, (tok_lengths * output / rate).long())


@each_model
def test_a_stage_takes_any_model(path):
    """As ``--model='!include:../model/X.yaml'`` on the command line."""
    # The form in which SpeechBrain's parse_arguments hands them on.
    overrides = f"model: !include:../model/{path.name}\ndata_folder: data"
    hparams = read_stage("quantizer", overrides)
    assert hparams["codec"]["name"] == path.stem
    assert hparams["codec"] is hparams["model"]["codec"]


@pytest.mark.parametrize("stage", STAGES, ids=lambda path: path.stem)
def test_a_stage_has_the_model_of_its_name(stage):
    given = "\n".join(f"{key}: given" for key in ("data_folder", "start_from"))
    hparams = read_stage(stage.stem, given)
    name = hparams["codec"]["name"]
    kind, _, ending = stage.stem.rpartition("_")
    if stage.stem.startswith("mini_stream"):
        assert name == "focalcodec_small_stream"
    elif stage.stem.startswith("mini"):
        assert name == "focalcodec_mini_50hz"
    elif ending.endswith("k"):
        assert name == f"focalcodec_50hz_{ending}_causal"
    elif ending.endswith("hz"):
        assert name == "focalcodec_" + stage.stem.removeprefix("quantizer_")
    else:
        streams = stage.stem.startswith("stream")
        assert name == "focalcodec_50hz" + streams * "_4k_causal"
    # A stage is found where its name says, and so is what it leaves.
    assert hparams["output_folder"] == f"results/{stage.stem}"


def read_stage(name, overrides):
    path = ROOT / "hparams" / "train" / f"{name}.yaml"
    return read_yaml(path, overrides + "\nencoder_source: x")


def test_a_stage_changes_options_of_a_model(tmp_path):
    text = f"""
    model: !include:{path_of("focalcodec_50hz_2k_causal")}
        decompressor:
            lookahead_size: 0
    codec: !ref <model[codec]>
    """
    with torch.device("meta"):
        codec = load_hyperpyyaml(StringIO(text))["codec"]
    config = codec.config.decompressor_config
    assert (config.lookahead_size, config.input_dim) == (0, 11)
    assert not any("refiner" in name for name in codec.state_dict())
