"""The closed schema of config.json: valid and invalid configurations."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechbrain_focalcodec import FocalCodec
from speechbrain_focalcodec.config import CodecConfig, read_config
from speechbrain_focalcodec.errors import ConfigError
from speechbrain_focalcodec.modules.part_configs import LogMelConfig
from speechbrain_focalcodec.parts import PARTS as KINDS

PARITY = Path(__file__).parent / "parity"
CASES = sorted(path.parent.name for path in PARITY.glob("*/config.json"))
PARTS = [f"{role}_config" for role in KINDS]


def published(case="offline_50hz"):
    return json.loads((PARITY / case / "config.json").read_text())


def with_option(part, key, value):
    data = published()
    data[part][key] = value
    return data


def refused(data):
    with pytest.raises(ConfigError) as caught:
        CodecConfig.parse(data, "the file")
    assert str(caught.value).startswith("the file: ")
    return str(caught.value)


# Valid configurations


@pytest.mark.parametrize("case", CASES)
def test_a_published_configuration_is_written_back_as_it_was(case):
    expected = published(case)
    decoder = expected["decoder_config"]
    if "input_channels" in decoder:  # the old keys get their new name
        decoder["input_dim"] = decoder.pop("input_channels")
        del decoder["padding"]
    config = CodecConfig.parse(published(case))
    assert config.to_dict() == expected
    assert CodecConfig.parse(config.to_dict()) == config
    assert json.loads(json.dumps(config.to_dict())) == expected


def test_missing_options_have_the_values_of_the_releases():
    config = CodecConfig.parse({})
    assert config.encoder_config.hidden_dims == (512,) * 7
    assert config.encoder_config.num_layers == 6
    compressor, decompressor = (
        config.compressor_config,
        config.decompressor_config,
    )
    assert compressor.hidden_dims == (1024, 512, 256)
    assert decompressor.hidden_dims == (256, 512, 1024)
    for part in (compressor, decompressor):
        assert part.focal_window == 7
        assert part.focal_level == part.focal_factor == 2
    assert config.quantizer_config.codebook_size == 8192
    assert config.decoder_name == "Vocos"
    assert config.decoder_config.hop_length == 320


def test_causal_parts_have_the_values_of_the_causal_releases():
    config = CodecConfig.parse(
        {
            "encoder_config": {"causal": True},
            "compressor_config": {"causal": True, "output_dim": 11},
            "quantizer_config": {"codebook_size": 2048},
            "decompressor_config": {"causal": True, "input_dim": 11},
            "decoder_name": "WaveNeXt",
        }
    )
    for part in (config.compressor_config, config.decompressor_config):
        assert part.hidden_dims == (1024, 1024, 1024)
        assert (part.focal_window, part.focal_factor) == (14, 4)
        assert part.window_size == 512
    assert config.encoder_config.lookahead_size == 3
    assert config.decompressor_config.lookahead_size == 3
    decoder = config.decoder_config
    assert (decoder.dim, decoder.ffn_dim) == (1024, 2048)
    assert decoder.hop_length == 480 and decoder.causal
    # given values win over these defaults
    data = {"compressor_config": {"causal": True, "focal_window": 9}}
    assert CodecConfig.parse(data).compressor_config.focal_window == 9
    # and completed options are written, so that other readers agree
    written = config.to_dict()["compressor_config"]
    assert written["focal_window"] == 14


def test_a_parsed_configuration_is_accepted():
    config = CodecConfig.parse(published())
    assert CodecConfig.parse(config) is config


# Invalid configurations


def test_an_unknown_key_is_named():
    message = refused(published() | {"decoder_nme": "Vocos"})
    assert "decoder_nme: unknown key" in message


@pytest.mark.parametrize("part", PARTS)
def test_an_unknown_key_of_a_part_is_named_with_its_path(part):
    message = refused(with_option(part, "dimm", 3))
    assert message == f"the file: {part}.dimm: unknown key"


def test_old_and_new_name_together_are_refused():
    message = refused(with_option("decoder_config", "input_channels", 32))
    assert "decoder_config.input_channels: unknown key" in message


@pytest.mark.parametrize("role", KINDS)
@pytest.mark.parametrize(
    "name",
    ["os.system", "subprocess:Popen", "wavlm", "WavLM ", "", "__class__"],
)
def test_an_unknown_module_is_named(role, name):
    message = refused(published() | {f"{role}_name": name})
    assert f"{role}_name: unknown module {name}; known: " in message


def test_the_module_of_another_part_is_refused():
    message = refused(published() | {"encoder_name": "Vocos"})
    assert "encoder_name: unknown module Vocos" in message


@pytest.mark.parametrize("name", [None, 3, ["WavLM"], {"WavLM": 1}])
def test_a_module_name_that_is_no_string_is_refused(name):
    assert "encoder_name: unknown module" in refused({"encoder_name": name})


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("encoder_config", "num_layers", "2"),
        ("encoder_config", "num_layers", True),
        ("encoder_config", "num_layers", 2.0),
        ("encoder_config", "num_layers", None),
        ("encoder_config", "causal", 1),
        ("encoder_config", "causal", "true"),
        ("encoder_config", "hidden_dims", 16),
        ("encoder_config", "hidden_dims", [16] * 6 + ["16"]),
        ("encoder_config", "hidden_dims", {"0": 16}),
        ("encoder_config", "hidden_dims", []),
        ("encoder_config", "dropout", "0.1"),
        ("encoder_config", "dropout", False),
        ("compressor_config", "layerscale_init", [1.0]),
        ("quantizer_config", "codebook_size", "32"),
        ("decoder_config", "n_fft", 1023),
    ],
)
def test_a_value_of_the_wrong_type_is_refused(part, key, value):
    message = refused(with_option(part, key, value))
    assert message.startswith(f"the file: {part}.{key}")


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("value", [None, [], "x", 3, [["dim", 32]]])
def test_a_part_that_is_no_object_is_refused(part, value):
    assert f"{part}: " in refused(published() | {part: value})


def test_the_options_of_another_module_are_refused():
    # from Python, a part may come as an object
    message = refused({"encoder_config": LogMelConfig()})
    assert "encoder_config: " in message
    assert "encoder_config.n_mels: unknown key" in refused(
        with_option("encoder_config", "n_mels", 80)
    )


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("encoder_config", "dim", 2**31),
        ("encoder_config", "dim", 10**4000),
        ("encoder_config", "num_layers", 65536),
        ("encoder_config", "num_layers", 0),
        ("encoder_config", "num_heads", 1024),
        ("encoder_config", "lookahead_size", 65536),
        ("encoder_config", "hidden_dims", [8] * 65),
        ("compressor_config", "focal_level", 65536),
        ("compressor_config", "downscale_factors", [65536, 1, 1]),
        ("decompressor_config", "upscale_factors", [1, -1, 1]),
        ("decompressor_config", "lookahead_size", -1),
        ("quantizer_config", "codebook_size", 2**25),
        ("quantizer_config", "codebook_size", 33),
        ("decoder_config", "num_layers", 10**6),
        ("decoder_config", "kernel_size", 0),
    ],
)
def test_an_absurd_size_is_refused(part, key, value):
    message = refused(with_option(part, key, value))
    assert message.startswith(f"the file: {part}.{key}")
    assert len(message) < 500


@pytest.mark.parametrize("key", ["n_mels", "n_fft"])
def test_the_size_of_a_computed_filterbank_is_bounded(key):
    data = {"encoder_name": "LogMel", "encoder_config": {key: 65536}}
    assert f"encoder_config.{key}" in refused(data)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"encoder_config": {"dim": 34}}, "multiple of num_heads"),
        ({"encoder_config": {"strides": [320]}}, "equally long"),
        ({"encoder_config": {"max_distance": 8}}, "max_distance must exceed"),
        (
            {"encoder_config": {"causal": True, "window_size": 3}},
            "window_size must exceed lookahead_size",
        ),
        ({"compressor_config": {"input_dim": 31}}, "compressor_config.input"),
        ({"compressor_config": {"output_dim": 6}}, "compressor_config.output"),
        ({"quantizer_config": {"codebook_size": 64}}, "codebook_size have 6"),
        ({"decompressor_config": {"input_dim": 6}}, "decompressor_config.in"),
        (
            {"decompressor_config": {"output_dim": 16}},
            "decompressor_config.output_dim is 16",
        ),
        ({"decoder_config": {"input_dim": 16}}, "decoder_config.input_dim is"),
        (
            {"compressor_config": {"downscale_factors": [2, 1, 1]}},
            "factors differ: 2, 1",
        ),
        (
            {"compressor_config": {"downscale_factors": [1, 1]}},
            "downscale_factors must be as long as hidden_dims",
        ),
        (
            {"decompressor_config": {"upscale_factors": [64, 64, 64]}},
            "product of upscale_factors must be at most",
        ),
        (
            {"decoder_config": {"hop_length": 1025}},
            "hop_length must not exceed n_fft",
        ),
        ({"decoder_config": {"hop_length": 1}}, "would have 50 Hz"),
        (
            {"decoder_config": {"hop_length": 60000, "n_fft": 65536}},
            "would have 3000000 Hz",
        ),
    ],
)
def test_parts_that_do_not_fit_are_refused(changes, problem):
    data = published()
    for part, options in changes.items():
        data[part] |= options
    assert problem in refused(data)


def test_the_bands_must_fit_the_sample_rate():
    data = {"encoder_name": "LogMel", "encoder_config": {"sample_rate": 8000}}
    assert "f_max <= sample_rate / 2" in refused(data)


@pytest.mark.parametrize("data", [None, [], [[]], "WavLM", 3, True, 0.5])
def test_other_json_than_an_object_is_refused(data):
    assert "expected a JSON object" in refused(data)


def test_a_message_is_short_and_printable():
    keys = {f"\x1b[31m{'x' * 1000}{i}": i for i in range(1000)}
    message = refused(keys)
    assert message.isprintable() and len(message) < 500
    assert "(and 995 more)" in message
    message = refused({"encoder_name": "\x1b[2J" * 1000})
    assert message.isprintable() and len(message) < 500


# The file


def write(folder, text):
    path = folder / "config.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "no valid JSON"),
        ("{", "no valid JSON"),
        ("{'encoder_name': 'WavLM'}", "no valid JSON"),
        (b"\xff\xfe{}", "no valid JSON"),
        (b"\x80\x04\x95\x10", "no valid JSON"),  # a pickle
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        ("[]", "expected a JSON object"),
        ("null", "expected a JSON object"),
        (" " * (1 << 20) + "{}", "larger than any"),
        ('{"encoder_config": {"dim": %s}}' % ("9" * 5000), "no valid JSON"),
        ('{"decoder_name": "Vocos", "decoder_name": "WaveNeXt"}', "repeated"),
        ('{"encoder_config": {"dim": 8, "dim": 9}}', "repeated key dim"),
        ('{"encoder_config": {"\\ud800": 1}}', "encoder_config: "),
        ('{"\\ud800": 1}', "config.json: "),
        ('{"encoder_config": {"dropout": NaN}}', "encoder_config.dropout"),
        ('{"encoder_config": {"dim": Infinity}}', "encoder_config.dim"),
        (
            '{"compressor_config": {"layerscale_init": -Infinity}}',
            "compressor_config.layerscale_init",
        ),
        (
            '{"compressor_config": {"layerscale_init": 1e999}}',
            "compressor_config.layerscale_init",
        ),
    ],
)
def test_a_damaged_file_is_refused_by_name(tmp_path, text, problem):
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        read_config(path)
    assert str(path) in str(caught.value) and problem in str(caught.value)
    str(caught.value).encode()  # can be printed


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match="config.json: not found"):
        read_config(tmp_path / "config.json")


def test_a_folder_in_place_of_the_file_is_refused(tmp_path):
    (tmp_path / "config.json").mkdir()
    with pytest.raises(ConfigError, match="config.json: cannot be read"):
        read_config(tmp_path / "config.json")


# Any content: the right keys, with anything in them

ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-1, 70)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["WavLM", "LogMel", "Vocos", "WaveNeXt"]),
    lambda inner: (
        st.lists(inner, max_size=8)
        | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)
OPTIONS = sorted(
    {
        option
        for kinds in KINDS.values()
        for kind in kinds.values()
        for option in kind.config.model_fields
    }
    | {"input_channels", "padding"}
)
OBJECTS = st.fixed_dictionaries(
    {},
    optional={
        **{
            f"{role}_name": st.sampled_from(sorted(classes)) | ANYTHING
            for role, classes in KINDS.items()
        },
        **{
            part: ANYTHING
            | st.dictionaries(st.sampled_from(OPTIONS), ANYTHING, max_size=3)
            for part in PARTS
        },
        "extra": ANYTHING,
    },
)


@settings(derandomize=True, deadline=None, max_examples=300)
@given(data=ANYTHING | OBJECTS)
def test_any_json_is_a_configuration_or_a_config_error(tmp_path_factory, data):
    path = write(tmp_path_factory.getbasetemp(), json.dumps(data))
    try:
        config = read_config(path)
    except ConfigError as error:
        assert str(error).startswith(str(path))
    else:
        assert CodecConfig.parse(config.to_dict()) == config


@settings(derandomize=True, deadline=None, max_examples=200)
@given(text=st.binary(max_size=200) | st.text(max_size=200))
def test_any_bytes_are_a_config_error(tmp_path_factory, text):
    path = write(tmp_path_factory.getbasetemp(), text)
    try:
        read_config(path)
    except ConfigError as error:
        assert str(error).startswith(str(path))
    else:
        assert json.loads(path.read_text()) == {}


# A configuration that claims a huge model, as far as the bounds go

LARGEST = {
    "encoder_config": {
        "hidden_dims": [1310] * 64,
        "kernel_sizes": [65536] * 64,
        "strides": [5, 64] + [1] * 62,
        "num_layers": 256,
        "dim": 27904,
        "ffn_dim": 65536,
        "num_heads": 1,
        "conv_pos_groups": 1,
        "num_buckets": 65536,
        "max_distance": 65536,
    },
    "compressor_config": {
        "input_dim": 27904,
        "hidden_dims": [20971] * 64,
        "downscale_factors": [1] * 64,
        "focal_level": 16,
        "focal_window": 65536,
        "focal_factor": 65536,
        "causal": True,
        "window_size": 65536,
    },
    "decompressor_config": {
        "output_dim": 27904,
        "hidden_dims": [20971] * 64,
        "upscale_factors": [1] * 64,
        "focal_level": 16,
        "focal_window": 65536,
        "focal_factor": 65536,
        "causal": True,
        "last_window_size": 65536,
        "lookahead_size": 1024,
    },
    "decoder_config": {
        "input_dim": 27904,
        "num_layers": 256,
        "dim": 65536,
        "ffn_dim": 65536,
        "kernel_size": 65536,
    },
}

LOAD = """
import resource, sys, time
from speechbrain_focalcodec import FocalCodec
from speechbrain_focalcodec.errors import CheckpointError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    FocalCodec.from_pretrained(sys.argv[1])
except CheckpointError as error:
    print(error)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_a_huge_configuration_is_refused_before_allocation(tmp_path):
    """The weights of it, tens of TiB, are not in the file."""
    weights = (PARITY / "offline_50hz" / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights)
    write(tmp_path, json.dumps(LARGEST))
    done = subprocess.run(
        [sys.executable, "-c", LOAD, tmp_path],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=PARITY.parents[1],
        check=True,
    )
    message, kib = done.stdout.splitlines()
    assert str(tmp_path / "model.safetensors") in message
    assert "wrong shape: " in message and "missing weight: " in message
    assert len(message) < 4000
    assert int(kib) < 512 * 1024


def test_computed_tensors_have_values_after_loading(tmp_path):
    """The comparison on the meta device must not leave tensors there."""
    data = json.loads((PARITY / "offline_50hz" / "config.json").read_text())
    data["encoder_name"] = "LogMel"
    data["encoder_config"] = {"n_mels": 32}
    codec = FocalCodec.from_config(data)
    codec.save_pretrained(tmp_path)
    loaded = FocalCodec.from_pretrained(tmp_path)
    expected = dict(codec.named_buffers())
    assert {"encoder.window", "encoder.filterbank"} <= expected.keys()
    for name, value in loaded.named_buffers():
        assert value.device.type == "cpu"
        assert value.equal(expected[name])
