"""Published configurations: the version that wrote a file has the defaults.

What a file leaves out is what that version takes. The models here are tiny,
so each case makes one with a default somewhere, and leaves that out.
"""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from speechbrain_focalcodec import FocalCodec
from speechbrain_focalcodec.config import CodecConfig, read_config
from speechbrain_focalcodec.errors import CheckpointError, ConfigError

TESTS = Path(__file__).parent
PARITY = TESTS / "parity"
WAVENEXT = TESTS / "published" / "wavenext_offline_default"

# Defaults of the two versions where they differ.
DEFAULTS = [
    ("compressor_config", "focal_window", 7, 14),
    ("compressor_config", "focal_factor", 2, 4),
    ("compressor_config", "hidden_dims", [1024, 512, 256], [1024] * 3),
    ("decompressor_config", "focal_window", 7, 14),
    ("decompressor_config", "focal_factor", 2, 4),
    ("decompressor_config", "hidden_dims", [256, 512, 1024], [1024] * 3),
    (None, "decoder_name", "Vocos", "WaveNeXt"),
]
BITS = {
    "compressor_config": "output_dim",
    "quantizer_config": "codebook_size",
    "decompressor_config": "input_dim",
}
# Options with one default, whichever version wrote the file.
SAME = [
    ("encoder_config", "causal", False),
    ("encoder_config", "use_flex_attention", False),
    ("encoder_config", "max_cached_steps", 2048),
    ("encoder_config", "dropout", 0.0),
    ("compressor_config", "causal", False),
    ("compressor_config", "tanhscale_init", 0.5),
    ("compressor_config", "use_layerscale", False),
    ("decompressor_config", "causal", False),
    ("decompressor_config", "lookahead_size", 3),
    ("decoder_config", "causal", False),
    ("decoder_config", "layerscale_init", None),
]


def published(case="offline_50hz"):
    return json.loads((PARITY / case / "config.json").read_text())


def config_of(version):
    """A tiny configuration that writes everything down."""
    if version == "0.0.1":
        return published("v001_50hz")
    data = published("full_options_50hz")
    for part in ("compressor_config", "decompressor_config"):
        data[part]["tanhscale_init"] = 0.5
    data["encoder_config"]["max_cached_steps"] = 2048
    return data


def to_wavenext(data):
    data["decoder_name"] = "WaveNeXt"
    for key in ("n_fft", "padding"):
        data["decoder_config"].pop(key, None)
    return data


def old_names(weights):
    """Weights as v0.0.1 names them."""
    for part, first, second in (
        ("compressor", "downscale", "focal_block"),
        ("decompressor", "focal_block", "upscale"),
    ):
        for number, kind in enumerate((first, second)):
            weights = {
                re.sub(
                    rf"^({part}\.layers\.\d+)\.{kind}\.", rf"\1.{number}.", k
                ): v
                for k, v in weights.items()
            }
    found = {}
    for name, value in weights.items():
        if ".qkv_proj." not in name:
            found[name] = value
            continue
        for letter, third in zip("qkv", value.chunk(3), strict=True):
            found[name.replace("qkv_proj", f"{letter}_proj")] = third.clone()
    found["quantizer.mask"] = 2 ** torch.arange(5)
    return found


def write(folder, data, weights, version="0.0.2"):
    """A model as the published package saves it."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(data))
    weights = old_names(weights) if version == "0.0.1" else weights
    save_file(
        {k: v.clone() for k, v in weights.items()},
        folder / "model.safetensors",
    )
    return folder


def without(data, part, key):
    data = json.loads(json.dumps(data))
    del (data if part is None else data[part])[key]
    return data


def assert_same_model(folder, codec):
    loaded = FocalCodec.from_pretrained(folder)
    assert loaded.config.identity() == codec.config.identity()
    assert loaded.fingerprint == codec.fingerprint
    return loaded


# Every option


@torch.no_grad()
def test_an_offline_model_as_v002_saves_it_is_not_causal():
    codec = FocalCodec.from_pretrained(WAVENEXT)
    assert not codec.causal and not codec.config.decoder_config.causal
    expected = load_file(WAVENEXT / "expected.safetensors")
    toks, _ = codec.encode(expected["sig"])
    assert torch.equal(toks, expected["toks"])
    rec_sig, _ = codec.decode(toks)
    torch.testing.assert_close(rec_sig, expected["rec_sig"], rtol=0, atol=1e-4)


def test_tanhscale_init_is_the_initial_alpha():
    codec = FocalCodec.from_config(published("full_options_causal"))
    alphas = [
        value
        for name, value in codec.state_dict().items()
        if "norm.alpha" in name
    ]
    assert len(alphas) == 12
    assert all(value.tolist() == [pytest.approx(0.7)] for value in alphas)


def test_metadata_is_accepted_and_dropped():
    data = published() | {"model_id": "owner/name", "version": "0.0.2"}
    config = CodecConfig.parse(data)
    assert config == CodecConfig.parse(published())
    assert not {"model_id", "version"} & config.to_dict().keys()


def test_attention_options_do_not_change_the_fingerprint():
    data = published("full_options_50hz")
    data["encoder_config"]["use_flex_attention"] = True
    config = CodecConfig.parse(data)
    expected = CodecConfig.parse(published("full_options_50hz"))
    assert config.identity() == expected.identity()
    assert config.to_dict() == data


# Defaults by version


@pytest.mark.parametrize("version", ["0.0.1", "0.0.2"])
@pytest.mark.parametrize(("part", "key", "first", "second"), DEFAULTS)
def test_missing_options_have_the_defaults_of_their_version(
    tmp_path, part, key, first, second, version
):
    default = first if version == "0.0.1" else second
    data = config_of(version)
    if key == "hidden_dims":  # 1024 channels are few MB with kernels of 1
        data[part] |= {"focal_window": 1, "focal_factor": 0}
    (data if part is None else data[part])[key] = default
    if default == "WaveNeXt":
        to_wavenext(data)
    codec = FocalCodec.from_config(data)
    left = without(data, part, key)
    folder = write(tmp_path / "model", left, codec.state_dict(), version)
    loaded = assert_same_model(folder, codec)
    # Saved, it means the same to every reader.
    saved = loaded.config.to_dict()
    part = saved if part is None else saved[part]
    assert json.loads(json.dumps(part))[key] == default


@pytest.mark.parametrize(("version", "bits"), [("0.0.1", 13), ("0.0.2", 12)])
def test_the_bits_are_those_of_the_version(tmp_path, version, bits):
    data = config_of(version)
    for part, key in BITS.items():
        data[part][key] = 2**bits if key == "codebook_size" else bits
    codec = FocalCodec.from_config(data)
    for part, key in BITS.items():
        left = without(data, part, key)
        folder = write(tmp_path / key, left, codec.state_dict(), version)
        assert_same_model(folder, codec)
        data = left  # one more left out each time


@pytest.mark.parametrize(("part", "key", "default"), SAME)
@pytest.mark.parametrize("decoder", ["Vocos", "WaveNeXt"])
def test_other_options_have_one_default(tmp_path, part, key, default, decoder):
    data = config_of("0.0.2")
    data = to_wavenext(data) if decoder == "WaveNeXt" else data
    assert data[part][key] == default
    codec = FocalCodec.from_config(data)
    left = without(data, part, key)
    assert_same_model(write(tmp_path, left, codec.state_dict()), codec)


def test_a_causal_file_with_a_decoder_that_is_not(tmp_path):
    data = published("full_options_causal")
    data["decoder_config"]["causal"] = False
    codec = FocalCodec.from_config(data)
    left = without(data, "decoder_config", "causal")
    folder = write(tmp_path, left, codec.state_dict())
    assert not assert_same_model(folder, codec).causal


def test_a_causal_release_that_leaves_its_sizes_out():
    data = {
        "encoder_config": {"causal": True},
        "compressor_config": {"causal": True, "output_dim": 11},
        "quantizer_config": {"codebook_size": 2048},
        "decompressor_config": {"causal": True, "input_dim": 11},
        "decoder_name": "WaveNeXt",
        "decoder_config": {"causal": True},
    }
    config = CodecConfig.parse(data)
    assert config.compressor_config.hidden_dims == (1024, 1024, 1024)
    assert config.decompressor_config.focal_window == 14


def test_old_weights_beside_a_configuration_of_the_newer_code(tmp_path):
    data = config_of("0.0.2")
    for part in ("compressor_config", "decompressor_config"):
        data[part] |= {"focal_window": 14, "focal_factor": 4}
    codec = FocalCodec.from_config(data)
    for key in ("focal_window", "focal_factor"):
        data = without(data, "compressor_config", key)
    assert_same_model(write(tmp_path, data, codec.state_dict(), "0.0.1"), codec)


def test_the_weights_decide_where_the_keys_do_not(tmp_path):
    """Not one key that only one of the versions has."""
    for number, (focal, factor) in enumerate([(7, 2), (14, 4)]):
        data = config_of("0.0.1")
        for key in ("input_channels", "padding"):
            data["decoder_config"].pop(key)
        for part in ("compressor_config", "decompressor_config"):
            data[part] |= {"focal_window": focal, "focal_factor": factor}
        data["encoder_config"] |= {"dim": 1024, "conv_pos": 1}
        data["compressor_config"]["input_dim"] = 1024
        data["decompressor_config"]["output_dim"] = 1024
        codec = FocalCodec.from_config(data)
        left = without(data, "compressor_config", "focal_window")
        left = without(left, "decompressor_config", "focal_factor")
        folder = write(tmp_path / str(number), left, codec.state_dict())
        assert_same_model(folder, codec)


def test_a_size_that_no_version_has_must_be_written(tmp_path):
    data = published()
    data["compressor_config"]["focal_window"] = 9
    codec = FocalCodec.from_config(data)
    left = without(data, "compressor_config", "focal_window")
    folder = write(tmp_path, left, codec.state_dict())
    with pytest.raises(ConfigError) as caught:
        FocalCodec.from_pretrained(folder)
    message = str(caught.value)
    assert str(folder / "config.json") in message
    assert "write down compressor_config.focal_window" in message
    assert "decompressor" not in message


def test_a_configuration_without_weights_must_show_its_version(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"encoder_config": {"dim": 1024}}))
    with pytest.raises(ConfigError, match="write down decoder_name, compr"):
        read_config(path)
    path.write_text(json.dumps({"version": "0.0.2"}))
    assert read_config(path).quantizer_config.codebook_size == 4096
    path.write_text(json.dumps({"decoder_config": {"padding": 3}}))
    assert read_config(path).quantizer_config.codebook_size == 8192


# Models that earlier versions of this package saved


FINGERPRINTS = {
    "focalcodec_mini_50hz": "463d8beb6ca2e4a22e1e50c90d914018",
    "focalcodec_mini_50hz_causal": "7ed4148c79ab173f5414ef9158c4a8a6",
    "causal_50hz": "26183951afce1ff71e9fb38cf72b6a11",
    "causal_50hz_lookahead0": "415849e732d082627f680a247c828db6",
    "offline_12_5hz": "0cc0bcea3a9a61d1f08adc20d6464052",
    "offline_options": "870e660d2e08836b0b9071de2a4beec9",
    "v001_50hz": "54c74be46a27ffe11f8747723d4068d6",
}


@pytest.mark.parametrize("name", FINGERPRINTS)
def test_fingerprints_stay(name):
    """Those that token files have held since the first version."""
    source = PARITY / name if (PARITY / name).is_dir() else name
    codec = FocalCodec.from_pretrained(source)
    assert codec.fingerprint.startswith(FINGERPRINTS[name])


def save_as_before(folder, codec, part, key):
    """As earlier versions saved a model that was not given an option."""
    codec.save_pretrained(folder)
    path = folder / "config.json"
    path.write_text(
        json.dumps(without(json.loads(path.read_text()), part, key))
    )
    return folder


def test_earlier_folders_are_the_same_model(tmp_path):
    codec = FocalCodec.from_pretrained(PARITY / "causal_50hz")
    folder = save_as_before(tmp_path / "a", codec, "decoder_config", "causal")
    assert assert_same_model(folder, codec).causal
    codec = FocalCodec.from_pretrained(PARITY / "offline_50hz")
    for key in ("focal_window", "focal_factor"):
        folder = save_as_before(tmp_path / key, codec, "compressor_config", key)
        assert_same_model(folder, codec)


def test_an_ambiguous_wavenext_must_say_whether_it_is_causal(
    tmp_path,
):
    codec = FocalCodec.from_pretrained(WAVENEXT)
    codec.save_pretrained(tmp_path)
    assert_same_model(tmp_path, codec)
    save_as_before(tmp_path, codec, "decoder_config", "causal")
    with pytest.raises(ConfigError, match="write down decoder_config.causal"):
        FocalCodec.from_pretrained(tmp_path)


# Where a model is


def test_a_configuration_with_weights_of_its_name(tmp_path):
    for name, case in (("config_a", "offline_50hz"), ("b", "offline_25hz")):
        for file in ("config.json", "model.safetensors"):
            path = tmp_path / f"{name}{Path(file).suffix}"
            path.write_bytes((PARITY / case / file).read_bytes())
    codec = FocalCodec.from_pretrained(tmp_path / "config_a.json")
    assert codec.name == "config_a" and codec.token_rate == 50
    assert FocalCodec.from_pretrained(str(tmp_path / "b.json")).token_rate == 25
    # A folder's config.json may have its weights under either name.
    path = PARITY / "offline_50hz" / "config.json"
    assert FocalCodec.from_pretrained(path).name == "offline_50hz"
    (tmp_path / "config_a.json").rename(tmp_path / "config.json")
    (tmp_path / "config_a.safetensors").rename(tmp_path / "config.safetensors")
    for source in (tmp_path, tmp_path / "config.json"):
        codec = FocalCodec.from_pretrained(source)
        assert codec.name == tmp_path.name and codec.token_rate == 50


def test_weights_of_another_name_are_not_used(tmp_path):
    for name in ("config.json", "model.safetensors"):
        content = (PARITY / "offline_50hz" / name).read_bytes()
        (tmp_path / name).write_bytes(content)
    (tmp_path / "config.json").rename(tmp_path / "config_x.json")
    with pytest.raises(CheckpointError, match="config_x.safetensors: not fo"):
        FocalCodec.from_pretrained(tmp_path / "config_x.json")


@pytest.mark.parametrize("source", ["focalcodec_mini_50hz", WAVENEXT])
def test_a_revision_needs_the_hub(source):
    paths = [source] if isinstance(source, str) else [source]
    if isinstance(source, Path):
        paths.append(source / "config.json")
    for path in paths:
        with pytest.raises(CheckpointError, match="revision 'v1': .* has none"):
            FocalCodec.from_pretrained(path, revision="v1")


@pytest.mark.parametrize("name", ["config.pt", "model.pt"])
def test_pickled_weights_are_converted_by_the_user(tmp_path, name):
    weights = load_file(PARITY / "offline_50hz" / "model.safetensors")
    torch.save(weights, tmp_path / name)
    config = (PARITY / "offline_50hz" / "config.json").read_bytes()
    (tmp_path / "config.json").write_bytes(config)
    with pytest.raises(CheckpointError, match="pickled weights") as caught:
        FocalCodec.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="pickled weights"):
        FocalCodec.from_pretrained(tmp_path / name)
    command = re.search("once: (python -c .*)", str(caught.value))[1]
    python, *arguments = shlex.split(command)
    subprocess.run([sys.executable, *arguments], check=True, timeout=120)
    expected = FocalCodec.from_pretrained(PARITY / "offline_50hz")
    assert FocalCodec.from_pretrained(tmp_path).fingerprint == (
        expected.fingerprint
    )
